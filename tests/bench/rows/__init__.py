"""The rows of the report: what is placed, rushed and paid, and the bar of each number."""
