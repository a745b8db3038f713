"""The setting of an engine that decides most like a policy, fitted on traces, and how often the two agree.

Agreement counts single decisions along the texts of the traces. Speed and loss have to be measured in the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from policies.export.draft_settings import why_not
from policies.export.source import ExportError, Source
from policies.export.target import Target
from policies.features.table import FEATURES
from policies.kinds.rule import Rule
from policies.storage.shards import read_shards


def nearest(source: Source, target: Target, traces: Path) -> Source:
    """The source whose policy is the setting of ``target`` that agrees most with the policy on the rows of ``traces``.

    Its ``approximation`` is this setting, its agreement on rows of prompts that it was not fitted on, their number, and
    the share of them at which the policy ends a draft.

    ExportError if the target has no setting for such a policy, FileError for traces that cannot be used.
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
    note = {"setting": rule.describe(), "agreement": float(agreement), "rows": len(ends)}
    fitted = replace(source, policy=rule, approximation=note | {"policy_ends": float(ends.mean())})
    reason = why_not(fitted, probability)
    if reason is not None:
        raise ExportError(f"{target.name} has no setting near this policy: {reason}")
    return fitted


def describe(approximation: dict[str, Any]) -> str:
    """One line for a reader; the baseline is to end every draft, or none."""
    blind = max(approximation["policy_ends"], 1 - approximation["policy_ends"])
    return (
        "nearest setting: {setting}; it decides as the policy on {agreement:.1%} of {rows} rows of other prompts"
        f" (one fixed answer: {blind:.1%})"
    ).format(**approximation)


def _best(probability: np.ndarray, ends: np.ndarray) -> float | None:
    """x such that "at most x" agrees most often with ``ends``; None for never."""
    known = np.isfinite(probability)
    order = np.argsort(probability[known], kind="stable")
    values, wanted = probability[known][order], ends[known][order]
    # If the first n end: the correct ones are those of them that should end, and the later ones that should not.
    right = np.concatenate([[0], np.cumsum(wanted)]) + (~wanted).sum() - np.concatenate([[0], np.cumsum(~wanted)])
    last = np.append(values[1:] != values[:-1], True)  # a threshold cannot separate equal values
    right[1:][~last] = -1
    count = int(right.argmax())
    return None if count == 0 else float(values[count - 1])


def read_columns(folder: Path, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Feature columns [rows, len(names)] of all Parquet shards in ``folder``, and bool [rows], the rows to fit on.

    Every other group of prompts is fitted on; agreement is measured on the rest.
    """
    for name in names:
        if name == "uniform" or FEATURES[name].needs_target:
            raise ExportError(f"traces do not hold {name!r}, so no setting can be fitted to this policy")
    data = read_shards(folder, "give the traces/ folder of a run as --traces", (*names, "group"))
    groups, index = np.unique(data["group"], return_inverse=True)
    if len(groups) < 2:
        raise ExportError(f"{folder} holds one group of prompts; fitting and measuring take two")
    return np.stack([data[name] for name in names], axis=1).astype(np.float32), index % 2 == 0
