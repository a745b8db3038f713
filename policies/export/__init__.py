"""Export: the same decisions, or the nearest setting, in other engines.

A target writes its files in ``engines``; ``targets`` lists them.
"""
