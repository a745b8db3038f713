"""Texts of exported files, some with placeholders; none of them is imported here."""

from importlib import resources


def template(name: str) -> str:
    """The text of the template ``name``."""
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")
