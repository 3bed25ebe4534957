"""How an order is placed and paid once more: hold its stock, write it, start its saga; and caches for cheap losers."""
