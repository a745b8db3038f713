"""One decoder at work on one batch: everything that has state."""

from __future__ import annotations

from dataclasses import dataclass, field

from decoding.sampling import Sampling
from decoding.session import Session
from decoding.text import Text


@dataclass(slots=True)
class Run:
    """What a decoder's ``write`` is given: the text, one session per model slot, and counters it may raise."""

    text: Text
    sessions: list[Session]
    sampling: Sampling
    drafted: int = 0
    accepted: int = 0
    escalated: list[int] = field(default_factory=list)
    """per policy: how often it said True (or an EOS was handed on)"""
