"""Files that are written as they are, or with a few words filled in; nothing here is imported."""

from importlib import resources


def template(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")
