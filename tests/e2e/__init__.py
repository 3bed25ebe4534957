"""Tests of one whole mesh behind its real gateway, through the REST surface."""
