"""Errors that show only while a text is written, and that are not of this program."""


class UnwritableText(ValueError):
    """A text cannot be gone on with: the settings of its model leave no token."""
