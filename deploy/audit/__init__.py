"""Checks that units and money add up, over all databases and the payment provider. It reads only.

`python -m deploy.audit` for operators; `audit` for programs. `sources` opens connections, `fetch` reads `rows`, `merge`
joins them by order id, `units` and `money` check them, `findings` lists the invariants, `show` prints the report.
"""

from deploy.audit.audit import Report, audit
from deploy.audit.findings import Finding, Invariant
from deploy.audit.sources import Sources, Unreachable

__all__ = ["Finding", "Invariant", "Report", "Sources", "Unreachable", "audit"]
