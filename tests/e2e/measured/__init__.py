"""The benchmark itself, with tiny numbers; and the calls and transactions that an order costs."""
