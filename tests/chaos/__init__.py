"""Orders that end in every way there is, while the processes at work on them are killed. `make chaos` runs it."""
