"""Stripe, through its official SDK: calls, their results, and the events that it sends."""
