"""All tests: `unit` needs no server, `integration` real servers, `e2e` a mesh; `tidy` and `contract` hold rules.

`sandbox` tests the payment sandbox over loopback; `audit`, `bench` and `chaos` run a mesh of their own.
"""
