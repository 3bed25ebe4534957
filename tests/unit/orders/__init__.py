"""Orders' rules and its saga, in a world of fakes."""
