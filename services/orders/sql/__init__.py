"""All SQL of orders: one module for each table that it writes, and `combined` for statements that write several."""
