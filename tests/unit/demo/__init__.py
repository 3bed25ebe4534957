"""The demo's shop and the rules of the audit."""
