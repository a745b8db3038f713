"""Values read from files of ours, as the dataclasses they were written from."""

import json
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from policies.storage.documents import FileError

T = TypeVar("T")


def checked(kind: type[T], value: Any, place: Path | str, remedy: str) -> T:
    """The dataclass ``kind``, those inside it too, from the JSON ``value`` found at ``place``.

    Keys that it does not have are ignored. FileError, which ends in ``remedy``, for a value of another type: text is
    no number, and true is none either.
    """
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise FileError(place, f"{where or 'it'}: {first['msg']}", remedy) from error


@cache
def _adapter(kind: type):
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
