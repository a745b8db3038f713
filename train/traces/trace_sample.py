"""What a search holds of hand-off traces of any size: whole texts to replay, and rows of all prompts to fit on."""

from collections.abc import Container
from pathlib import Path
from typing import NamedTuple

import numpy as np

from train.traces.handoff_traces import FEATURE_COLUMNS, NEEDED, Traces, each_traces
from train.traces.reservoir import FIT_ROWS, TEXT_ROWS, Reservoir, prompt_keys, row_keys

HELD = tuple(dict.fromkeys((*NEEDED, *FEATURE_COLUMNS)))
"""columns that searches read"""


class TraceSample(NamedTuple):
    """Traces that were read in pieces: all of them, or a sample where they are more than memory should hold."""

    texts: Traces
    """all texts of some prompts, of at most ``TEXT_ROWS`` rows"""
    rows: Traces
    """rows of fitting prompts, at most ``FIT_ROWS``"""
    there: frozenset[str]
    """prompts for which a random hand-off wrote, in all shards"""
    seen: int
    """rows of all shards"""

    @property
    def sentence(self) -> str | None:
        """What of the traces is used, where it is not all."""
        if len(self.texts) == self.seen:
            return None
        used = f"texts of {len(self.texts):,} are replayed, and {len(self.rows):,} are fitted to"
        return f"of {self.seen:,} rows of traces, {used}"


def read_sample(folder: Path, fitting: Container[str], seed: int = 0, shards: int | None = None) -> TraceSample:
    """Read the finished shards of ``folder``, all or the first ``shards``, one by one.

    ``fitting``: ids of the prompts that are fitted on. The samples depend on ``seed`` and on the shards alone.
    FileError when there are no shards, or one cannot be used.
    """
    texts, rows, there = Reservoir(TEXT_ROWS), Reservoir(FIT_ROWS), set()
    for number, traces in enumerate(each_traces(folder, shards)):
        columns = {name: traces[name] for name in HELD}
        names, at = np.unique(traces["prompt"], return_inverse=True)
        fits = np.array([name in fitting for name in names.tolist()], bool)[at]
        texts.add(columns, prompt_keys(traces["prompt"], seed))
        rows.add({name: column[fits] for name, column in columns.items()}, row_keys(len(at), seed, number)[fits])
        there |= set(traces["prompt"][traces["trajectory"] == "mixed"].tolist())
    return TraceSample(Traces(texts.take()), Traces(rows.take()), frozenset(there), texts.seen)
