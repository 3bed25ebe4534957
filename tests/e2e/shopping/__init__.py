"""Customers and staff: every path of an order, a payment and a sale."""
