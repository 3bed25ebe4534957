"""Orders on a real database; the other services are replaced by fakes."""
