"""Rules for the repository that no linter checks. Each rule is one test, and lists everything that breaks it."""
