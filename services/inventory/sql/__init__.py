"""All SQL of inventory. A module holds the statements that write its tables; `schema` maps them.

`reserve_fast` writes several tables in one statement; a test proves it equal to the slow path.
Lock order, everywhere: reservations by id, then sales by product, then stock by product. Reserving skips the first
step: it only inserts reservations, and no transaction that waits for it holds a lock that it needs.
"""
