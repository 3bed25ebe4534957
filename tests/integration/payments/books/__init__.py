"""The books: the journal and disputes."""
