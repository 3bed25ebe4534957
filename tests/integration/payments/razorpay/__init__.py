"""Payments whose customers pay through Razorpay, and what holds for both providers alike."""
