"""The edge of the mesh: one Envoy configuration, derived from the contract."""
