"""Graders of a user's own, named as module:function, right and wrong ones."""


def half(prompt, reference, text):
    return 0.5 if text else None


def two(prompt, text):
    return 1.0


def variety(prompt, reference, text):
    """The share of different words in a text."""
    words = text.split()
    return len(set(words)) / len(words) if words else 0.0


def none_for_long(prompt, reference, text):
    return None if len(prompt.split()) > 5 else 1.0


NO_FUNCTION = "text"
