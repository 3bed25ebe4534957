"""The life of intents, charges and refunds as pure rules: no HTTP, no clock, no disk."""
