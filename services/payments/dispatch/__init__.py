"""Provider calls: `dispatcher` starts them and stores results, `reconciler` repeats those without an answer."""
