"""The books: the double-entry journal of all money that has moved."""
