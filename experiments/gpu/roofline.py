"""Tokens a second of a GPU on paper: bytes of weights and keys, operations within a graph, launches and waits."""

from __future__ import annotations

from dataclasses import dataclass

LAYER, REST = 16, 70
"""Operations of the fused forward of a Llama in a layer, and of the rest of a step: estimated by reading."""

CALL, ROUND, BEAMS = 44, 100, 110
"""Launches besides recordings: of a token that the large model is asked for, of a speculative round, of a level of
beams. Counted by ``tests/support/launch_counts.py``."""


@dataclass(frozen=True)
class Card:
    """What a card does: bytes a second, and the seconds of an operation in a graph, of a launch, of a wait."""

    name: str
    bandwidth: float
    operation: float = 1e-6
    launch: float = 4e-6
    wait: float = 15e-6


H100 = Card("H100 SXM", 3.35e12)
"""The bandwidth is of the data sheet; the other times are assumptions that nobody here has measured."""
EFFICIENCY = 0.88
"""Share of the bandwidth that large matrix-vector products reach; an assumption too."""


def weights(shape: dict) -> int:
    """Parameters that a forward of one token reads: all but the table of embeddings, unless the head shares it."""
    width, inner, layers = (shape[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    head = shape.get("head_dim", width // shape["num_attention_heads"])
    attention = width * head * 2 * (shape["num_attention_heads"] + shape["num_key_value_heads"])
    return layers * (attention + 3 * width * inner) + width * shape["vocab_size"]


def keys(shape: dict, context: int) -> int:
    """Numbers of the cache that a token reads behind ``context`` tokens."""
    head = shape.get("head_dim", shape["hidden_size"] // shape["num_attention_heads"])
    return 2 * shape["num_hidden_layers"] * shape["num_key_value_heads"] * head * context


def forward(shape: dict, rows: int, context: int, card: Card, limit: bool = False) -> float:
    """Seconds of a recorded forward of a few tokens in each of ``rows``; ``limit``: of its bytes alone."""
    size = 2 * (weights(shape) + rows * keys(shape, context)) / card.bandwidth
    return size if limit else size / EFFICIENCY + card.operation * (LAYER * shape["num_hidden_layers"] + REST)


def eager(shape: dict, rows: int, context: int, card: Card, limit: bool = False) -> float:
    """Seconds of a forward that is not recorded, as of the nodes of a tree: the host may take longer to launch it."""
    bound = forward(shape, rows, context, card, limit)
    return bound if limit else max(bound, card.launch * (LAYER * shape["num_hidden_layers"] + REST))


def seconds(row: str, shapes: tuple[dict, dict], rows: int, context: int, card: Card, limit: bool = False) -> float:
    """Seconds of a token of each of ``rows`` texts, by the name of a row of ``experiments/gpu_check.py``.

    Of drafts that are never accepted, as those of random weights, a token is a round.
    """
    small, large = (forward(shape, rows, context, card, limit) for shape in shapes)
    kind, _, number = row.partition(":")
    asked = 0.0 if limit else card.launch * CALL
    if kind in ("small", "decision"):
        return small
    if kind == "large":
        return large
    if kind == "hand-off":
        share = 1 - int(number) / 100
        steps = 1 if limit else 1 + share  # a step is wasted for every token that escalates
        some = 1 - (1 - share / steps) ** rows  # the large model is asked in a step if any row escalates
        return steps * (small + some * (large + asked))
    drafted, told = int(number or 0), 0.0 if limit else card.wait
    if kind == "speculative":
        return drafted * small + large + told + (0.0 if limit else card.launch * ROUND)
    if kind == "mtad":  # the first level is a chain
        trees = [eager(shape, rows, context, card, limit) for shape in shapes]
        own = 0.0 if limit else card.launch * BEAMS * drafted
        return small + (drafted - 1) * trees[0] + trees[1] + told + own
    raise ValueError(f"no prediction for {row}")
