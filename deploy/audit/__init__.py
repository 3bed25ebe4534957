"""Checks that units and money add up, over all databases, the payment provider, the broker and the gate. Reads only.

`python -m deploy.audit` for operators; `audit` for programs. `reading` opens and reads what is compared, `checks` has
each comparison, `findings` lists the invariants, and `show` prints the report. `repair` carries out those repairs that
follow from other rows.
"""

from deploy.audit.audit import Report, audit
from deploy.audit.findings import Check, Finding, Invariant
from deploy.audit.reading.sources import Sources
from deploy.audit.reading.unreachable import Unreachable

__all__ = ["Check", "Finding", "Invariant", "Report", "Sources", "Unreachable", "audit"]
