"""The inbox of provider events: stored once each, applied later, and read again from the provider's list."""
