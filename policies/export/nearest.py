"""The nearest setting that an engine can hold, fitted on traces, and how often it decides as the policy does.

Agreement is of single decisions along the traces' own text: it is no speed and no loss, which only the engine can show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from policies.export.settings import why_not
from policies.export.source import ExportError, Source
from policies.export.target import Target
from policies.features.table import FEATURES
from policies.kinds.rule import Rule


@dataclass(frozen=True)
class Fit:
    """``agreement``: share of the ``rows``, of prompts that it was not fitted on, on which both decide the same."""

    source: Source
    agreement: float
    rows: int
    wanted: float
    """share of the rows on which the policy itself ends a draft"""

    def describe(self) -> str:
        """One line for a person; the number to beat is that of never ending a draft, or always."""
        blind = max(self.wanted, 1 - self.wanted)
        return (
            f"nearest setting: {self.source.policy.describe()}; it decides as the policy on {self.agreement:.1%} of "
            f"{self.rows} rows of other prompts (one fixed answer: {blind:.1%})"
        )

    def recorded(self) -> Source:
        """What is exported instead of the policy, and says so in its provenance."""
        setting = self.source.policy.describe()
        note = {"setting": setting, "agreement": self.agreement, "rows": self.rows, "policy_ends": self.wanted}
        return replace(self.source, approximation=note)


def nearest(source: Source, target: Target, traces: Path) -> Fit:
    """The setting of ``target`` that agrees most with the policy on the rows of ``traces``.

    ExportError where the target has no setting at all for such a policy, or the traces do not have what it reads.
    """
    if target.roles != ("stop",):
        raise ExportError(f"{target.name} carries no approximations; leave out --approximate")
    if source.role != "stop":
        raise ExportError(f"{target.name} has no setting near a hand-off: it checks every token with the large model")
    policy, probability = source.policy, target.probability
    if policy.needs_hidden:
        raise ExportError("traces hold no hidden states, so no setting can be fitted to this policy")
    table, half = read_columns(traces, (*policy.names, *([] if probability is None else [probability])))
    ends = ~(policy.score_table(table[:, : len(policy.names)]).numpy() < policy.threshold.item())
    found = None if probability is None else _best(table[half, -1], ends[half])
    says = np.zeros(len(ends), dtype=bool) if found is None else ~(table[:, -1] > np.float32(found))
    if says.all():
        raise ExportError(f"{target.name} has no setting near this policy: the nearest ends every draft at once")
    agreement, ends = (says == ends)[~half].mean(), ends[~half]
    rule = Rule.never() if found is None else Rule(probability, found, "<=")
    rule.models = policy.models
    rule.provenance = policy.provenance
    fit = Fit(replace(source, policy=rule), float(agreement), len(ends), float(ends.mean()))
    reason = why_not(fit.source, probability)
    if reason is not None:
        raise ExportError(f"{target.name} has no setting near this policy: {reason}")
    return fit


def _best(probability: np.ndarray, ends: np.ndarray) -> float | None:
    """x such that "at most x" says most often what ``ends`` says; None for never."""
    known = np.isfinite(probability)
    order = np.argsort(probability[known], kind="stable")
    values, wanted = probability[known][order], ends[known][order]
    # Correct when the first n end: those of them that should, and those after them that should not.
    right = np.concatenate([[0], np.cumsum(wanted)]) + (~wanted).sum() - np.concatenate([[0], np.cumsum(~wanted)])
    last = np.append(values[1:] != values[:-1], True)  # a threshold cannot part equal values
    right[1:][~last] = -1
    count = int(right.argmax())
    return None if count == 0 else float(values[count - 1])


def read_columns(folder: Path, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Feature columns [rows, len(names)] of all Parquet shards in ``folder``, and the rows [rows] to fit on.

    These are of every other group of prompts: agreement is measured on the others.
    """
    import pyarrow as pa
    import pyarrow.parquet as parquet

    for name in names:
        if name == "uniform" or FEATURES[name].needs_target:
            raise ExportError(f"traces do not hold {name!r}, so no setting can be fitted to this policy")
    shards = sorted(folder.glob("shard-*.parquet"))
    if not shards:
        raise ExportError(f"{folder} holds no shards; give the traces/ folder of a run as --traces")
    try:
        data = pa.concat_tables(
            [parquet.read_table(path, columns=list(dict.fromkeys((*names, "group")))) for path in shards]
        )
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ExportError(f"{folder}: its shards lack a feature of this policy or cannot be read ({error})") from error
    groups, index = np.unique(data["group"].to_numpy().astype(str), return_inverse=True)
    if len(groups) < 2:
        raise ExportError(f"{folder} holds one group of prompts; fitting and measuring take two")
    return np.stack([data[name].to_numpy() for name in names], axis=1).astype(np.float32), index % 2 == 0
