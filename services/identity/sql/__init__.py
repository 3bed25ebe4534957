"""All SQL of identity: `schema` maps the tables, and one module per table or pair of tables reads and writes them."""
