"""The goals of the engine on a GPU, and what the rows of ``experiments/gpu_check.py`` say of them."""

from __future__ import annotations

from collections.abc import Iterator

from experiments.engine_speed.random_models import SHAPES
from experiments.gpu import roofline

BANDWIDTH, OVERHEAD, FEATURES, HANDOFF, ASSISTED = 0.80, 1.05, 1.10, 0.90, 4.0
"""Autoregressive speed as a share of the weights' bandwidth (gpt-fast reaches 0.82); a decision's time by a rule and by
all features, both with the forward, in forwards; hand-off as a share of its own limit; times transformers' assisted."""


def reached(pair: str, known: dict[str, dict]) -> Iterator[tuple[str, str, str, str]]:
    """(pair, goal, the number to reach, the number found) of a batch of 1, as far as there are files."""
    part = known.get(f"{pair} 1", {"rows": (), "tiny": True, "prompt": 0, "new": 0})
    seconds = {row["row"]: row["seconds_a_token"] for row in part["rows"]}
    shares = {row["row"]: row["share_by_large"] for row in part["rows"]}
    if not seconds:
        return
    small, large = seconds["small"], seconds["large"]
    if not part["tiny"]:
        context = part["prompt"] + part["new"] * 3 // 4
        for name, shape, found in zip(("small", "large"), SHAPES[pair], (small, large), strict=True):
            share = roofline.forward(shape, 1, context, roofline.H100, limit=True) / found
            yield pair, f"{name} model alone: share of an H100's bandwidth", f"{BANDWIDTH:.2f}", f"{share:.2f}"
    for row, most in (("decision:rule", OVERHEAD), ("decision:logistic", FEATURES)):
        yield pair, f"{row}: tokens of the small model alone", f"at most {most:.2f}", f"{seconds[row] / small:.2f}"
    for row in ("hand-off:80", "hand-off:90"):
        limit = small + shares[row] * large  # 1 / (c + 1 - b) in tokens of the large model
        yield pair, f"{row}: share of its own limit", f"{HANDOFF:.2f}", f"{limit / seconds[row]:.2f}"
    others = {row["row"]: row["seconds_a_token"] for row in known.get(f"{pair} transformers", {"rows": ()})["rows"]}
    if others:
        best = min(seconds[row] for row in ("speculative:4", "mtad:4"))
        times = others["transformers-assisted:4"] / best
        yield pair, "best draft of 4: times transformers assisted", f"{ASSISTED:.0f}", f"{times:.1f}"
