"""The chassis on real servers: outbox, consumers, leases, clients, processes."""
