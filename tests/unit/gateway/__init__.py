"""The gateway's configuration, as Envoy itself validates it."""
