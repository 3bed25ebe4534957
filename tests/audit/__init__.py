"""The audit finds each corruption of a consistent set of records, and names what repairs it.

`records` lets a real mesh make the records once a session; `corruptions` lists what is done to them.
"""
