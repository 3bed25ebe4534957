"""Events between services: stored in the outbox, published to JetStream, consumed once, or broadcast."""
