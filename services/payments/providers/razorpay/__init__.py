"""Razorpay, through its official SDK: calls in threads, their results, and the events that it sends."""
