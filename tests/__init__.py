"""All tests: `unit` needs no server, `integration` real servers, `e2e` a mesh; `tidy` and `contract` hold rules."""
