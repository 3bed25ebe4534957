"""Calls to providers: `dispatcher` starts them and stores their results, `reconciler` repeats those without an answer."""
