"""The guard and its helpers, without a server."""
