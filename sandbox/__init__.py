"""A payment provider without money, which speaks Stripe's HTTP protocol; see README.md."""
