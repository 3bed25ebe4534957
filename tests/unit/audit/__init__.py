"""The checks of the audit, on rows made by hand."""
