"""Checks that units and money add up, over all databases and the payment provider.

`python -m deploy.audit` for operators; `audit` for programs. Everything is read, nothing is changed.
"""

from deploy.audit.audit import Report, audit
from deploy.audit.findings import Finding, Invariant
from deploy.audit.sources import Sources, Unreachable

__all__ = ["Finding", "Invariant", "Report", "Sources", "Unreachable", "audit"]
