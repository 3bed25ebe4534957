"""Flash sales: their terms, changes, views and availability."""
