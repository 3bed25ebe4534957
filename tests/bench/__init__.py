"""The bench: `make bench` measures the cost of an order, `make soak` the memory over many of them.

- `__main__`, `soak`: the two programs; `report` prints numbers beside their bars.
- `mesh`, `shop`, `accounts`, `empty_rpc`: the mesh and the baseline that are measured, and their customers and sales.
- `rows/`: one module a group of rows. `load/`: the programs that send requests. `measure/`: readings of a mesh.
- `rivals/`: DBOS and Celery, with the same three steps.
"""
