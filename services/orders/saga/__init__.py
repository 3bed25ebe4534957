"""The saga that brings an order to its end: plan, steps, the worker, and the operators' view. No SQL stands here."""
