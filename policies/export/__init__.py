"""Policies leave home: the same decisions, or their nearest setting, in other engines."""
