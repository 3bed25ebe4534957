"""The life of a reservation: `reserve` holds units, `settle` decides what becomes of them, `returns` takes them back.

Each function is one transaction over a whole batch, and returns one outcome per item.
"""
