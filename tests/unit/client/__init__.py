"""The REST client, against servers of the tests."""
