"""The saga that brings an order to its end, and the comparison of settled orders with payments. No SQL stands here."""
