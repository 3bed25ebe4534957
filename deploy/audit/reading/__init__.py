"""Reads what an audit compares: databases, the provider's records, the broker and the gate.

`sources` opens them, `fetch` reads `rows` from databases, `merge` joins them by order id.
"""
