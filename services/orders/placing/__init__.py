"""How an order is placed: hold its stock, write it, start its saga; and the caches that keep losers cheap."""
