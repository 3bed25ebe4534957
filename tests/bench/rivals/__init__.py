"""Durable-execution systems that run the same three steps as an order, measured in the same run: DBOS and Celery.

The two programs are run by the interpreter of `.venv-bench`, so this module imports nothing.
"""
