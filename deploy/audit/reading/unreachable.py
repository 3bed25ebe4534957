"""The error of everything that an audit cannot read."""


class Unreachable(Exception):
    """A source cannot be read. The message names it and the reason."""
