"""All SQL of identity: `schema` maps the tables; `users`, `sessions` and `signing_keys` read and write them."""
