"""The orders service; README.md describes it."""
