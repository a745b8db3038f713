"""Errors that show only when a text is written, and that are not faults of this program."""


class UnwritableText(ValueError):
    """A text cannot be gone on with: the settings of its model leave no token."""


class MemoryTooSmall(ValueError):
    """The caches of a text, or of several at once, do not fit the memory that is free."""
