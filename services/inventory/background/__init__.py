"""Work of inventory besides answering calls: the timers of the leading process, and live views of sales."""
