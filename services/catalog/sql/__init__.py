"""All SQL of the catalog: `schema` maps its table, `products` reads and writes it."""
