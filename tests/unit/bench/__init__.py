"""Tests of the bench's own code, without a mesh."""
