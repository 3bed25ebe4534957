"""Razorpay's protocol: orders, the payments of customers at them, captures, refunds and disputes."""
