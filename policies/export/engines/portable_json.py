"""Target ``json``: the policy as one documented JSON file, with its JSON Schema beside it.

Fields of ``policy.json`` (version 1):

- ``format`` "decision-policy", ``version`` 1, ``kind``, ``role`` ("handoff": True gives the next token to the large
  model; "stop": True ends the draft before this token), ``description`` for a reader.
- ``features``: the columns, in order. ``entropy`` (nats), ``varentropy``, ``top1``, ``margin``, ``top10`` (largest of
  the ten largest probabilities, renormalised) and ``top10_mass`` are of the small model's softmax over the whole
  vocabulary, before temperature. ``position`` is the number of the answer's tokens; ``since_large`` the number since
  the large model wrote or checked one; ``agreed`` is 1 if it then chose the small model's token, 0 if not, NaN before;
  ``large_entropy`` is its entropy then; ``repeated`` the length, at most 8, of the answer's longest suffix that also
  occurs earlier in it; ``mean_x`` the mean of x at the ``window`` positions before this one, skipping NaN;
  ``last_is_x`` a bit of ``classes[last token]`` (1 word start, 2 digit, 4 punctuation, 8 newline); ``uniform`` noise
  in [0, 1). The features of drafted tokens that the large model has read (``kl``, ``tv`` ...) are defined in
  ``verification.py``.
- ``score`` by ``type``. "network": z = (features - ``mean``) / ``scale``, NaN becoming 0 in columns with ``impute``;
  then, when ``hidden_width`` > 0, the small model's last hidden state (normalised to mean 0 and variance 1, epsilon
  1e-5) is appended; then ``layers`` (weight [out, in] and bias) with SiLU between them and ``output`` ("sigmoid" or
  "identity") after the last. "periodic": 1 where position is a multiple of ``every``, else 0. "constant": the answer
  is ``escalate``.
- The decision is True unless score < ``threshold``, so NaN says True. All numbers are float32.
- ``provenance``: models and hashes, engine, machine, prompts, certificate, tuning.
"""

from __future__ import annotations

from typing import Any

from policies.export.portable import FORMAT, VERSION, document
from policies.export.source import ROLES, Source
from policies.export.target import Files, Target
from policies.features.table import FEATURES


def write(source: Source) -> Files:
    return {"policy.json": document(source), "policy.schema.json": SCHEMA}


_NUMBERS = {"type": "array", "items": {"type": "number"}}


def _object(**properties) -> dict[str, Any]:
    """The schema of an object with exactly these ``properties``."""
    return {"type": "object", "required": list(properties), "properties": properties, "additionalProperties": False}


_LAYER = _object(weight={"type": "array", "items": _NUMBERS}, bias=_NUMBERS)
_PROGRAMS = [
    _object(type={"const": "constant"}, escalate={"type": "boolean"}),
    _object(type={"const": "periodic"}, every={"type": "integer", "minimum": 1}),
    _object(
        type={"const": "network"},
        mean=_NUMBERS,
        scale={"type": "array", "items": {"type": "number", "exclusiveMinimum": 0}},
        impute={"type": "array", "items": {"type": "boolean"}},
        layers={"type": "array", "minItems": 1, "items": _LAYER},
        output={"enum": ["identity", "sigmoid"]},
        hidden_width={"type": "integer", "minimum": 0},
    ),
]
_NAMES = {"type": "array", "items": {"enum": list(FEATURES)}}
_POLICY = _object(
    format={"const": FORMAT},
    version={"const": VERSION},
    kind={"type": "string"},
    role={"enum": list(ROLES)},
    length={"type": "integer", "minimum": 1},
    features=_NAMES,
    threshold={"type": "number"},
    score={"oneOf": _PROGRAMS},
    history=_NAMES,
    window={"type": "integer", "minimum": 0},
    classes={"anyOf": [{"type": "null"}, {"type": "array", "items": {"type": "integer", "minimum": 0}}]},
    description={"type": "string"},
    provenance={"type": "object"},
)
_DIALECT, _TITLE = "https://json-schema.org/draft/2020-12/schema", "A decision policy of two-model decoding"
SCHEMA = {"$schema": _DIALECT, "title": _TITLE, "description": __doc__} | _POLICY
TARGET = Target(
    name="json",
    summary="policy.json and its JSON Schema, for an engine that is not listed here",
    write=write,
)
