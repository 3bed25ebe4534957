"""All SQL of payments. One module a table, named after it, and it alone writes that table.

A function is one round trip for any number of rows. One that takes `tx` runs inside the caller's transaction; one that
takes `db` is a transaction by itself.
"""
