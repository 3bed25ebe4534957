"""All checks of an audit. Each is one statement on one database, or one comparison of rows in Python.

`across` compares the rows of one order over all services, `units` counters, `references` ids; `excuses` says what may
be in progress, and for how long. `orders`, `inventory`, `payments`, `accounts` and `schema` are statements. `events`
asks the broker and the gate. `coverage` names the check of each column.
"""
