"""Beam sampling: several continuations at once, in one cache, each drawn by the weight of its whole past."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from decoding.draft import at, at_each, log_probabilities
from decoding.run import Run
from decoding.sampling import DRAW, Sampling
from decoding.text import Text
from decoding.tree import Tree


@dataclass(slots=True)
class Beams:
    """All nodes that ``width`` beams went through: node i is beam ``i % width`` of level ``i // width``.

    A beam that has met an EOS, or the end of its row's budget, repeats its last token for certain: such nodes are
    ``idle`` and stand for the block that ended.
    """

    tokens: Tensor
    """[r, n]"""
    parents: Tensor
    """[r, n] node before each, -1 for the text"""
    weights: Tensor
    """[r, n] log-probability, as drawn, of all tokens up to each; -inf where there were fewer beams than ``width``"""
    idle: Tensor
    """[r, n]"""
    tree: Tree
    width: int

    @classmethod
    def empty(cls, lengths: Tensor, room: Tensor, width: int, depth: int) -> Beams:
        """No beams yet after texts of ``lengths`` [r]; positions stay within ``room`` [r] tokens."""
        r, n = len(lengths), width * depth
        level = torch.arange(n, device=lengths.device) // width
        places = torch.minimum(level + 1, room.clamp(min=1)[:, None])
        seen = torch.eye(n, dtype=torch.bool, device=lengths.device).repeat(r, 1, 1)
        return cls(
            tokens=lengths.new_zeros(r, n),
            parents=lengths.new_full((r, n), -1),
            weights=torch.full((r, n), -torch.inf, device=lengths.device),
            idle=level >= room[:, None],
            tree=Tree(lengths, places, seen),
            width=width,
        )

    @property
    def levels(self) -> Tensor:
        """[n]"""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) // self.width

    @property
    def alive(self) -> Tensor:
        """[r, n]"""
        return self.weights > -torch.inf

    @property
    def sizes(self) -> Tensor:
        """[r, n] tokens from the text to each node, idle ones not counted."""
        return (self.tree.seen & ~self.idle[:, None]).sum(-1) * self.alive

    def along(self, values: Tensor) -> Tensor:
        """[r, n] sum of ``values`` [r, n] over each node and its ancestors that are not idle."""
        return torch.where(self.tree.seen & ~self.idle[:, None], values[:, None], 0.0).sum(-1)

    def path(self, nodes: Tensor) -> Tensor:
        """[r, depth] the nodes from the text to ``nodes`` [r]; on levels beyond them it means nothing."""
        seen = at(self.tree.seen, nodes).view(len(nodes), -1, self.width)
        return seen.int().argmax(-1) + self.width * torch.arange(seen.shape[1], device=nodes.device)

    def best(self) -> Tensor:
        """[r] the last node of the beam of the greatest weight."""
        return self.tokens.shape[1] - self.width + self.weights[:, -self.width :].argmax(-1)

    def only(self, path: Tensor) -> Beams:
        """The one beam through the nodes ``path`` [r, depth]."""
        r, depth = path.shape
        seen = torch.ones(depth, depth, dtype=torch.bool, device=path.device).tril()
        return Beams(
            tokens=self.tokens.gather(1, path),
            parents=torch.arange(-1, depth - 1, device=path.device).expand(r, -1),
            weights=self.weights.gather(1, path),
            idle=self.idle.gather(1, path),
            tree=Tree(self.tree.start, self.tree.depth.gather(1, path), seen.expand(r, -1, -1)),
            width=1,
        )

    def grow(self, level: int, beams: Tensor, tokens: Tensor, weights: Tensor, over: Tensor) -> None:
        """Level ``level``: ``tokens`` [r, width] after the ``beams`` [r, width] of the level before."""
        here = slice(level * self.width, (level + 1) * self.width)
        self.tokens[:, here], self.weights[:, here] = tokens, weights
        self.idle[:, here] = over
        if level:
            self.parents[:, here] = parents = beams + (level - 1) * self.width
            self.tree.seen[:, here] |= at_each(self.tree.seen, parents)


def sample_beams(
    run: Run, rows: Tensor, lengths: Tensor, room: Tensor, width: int, depth: int, length: int
) -> tuple[Beams, Tensor]:
    """``width`` beams of ``depth`` tokens by the first model, and its logits [r, 1 + n - width, vocab].

    Each level draws ``width`` different continuations of all beams in proportion to their weights, without
    replacement; greedy takes the heaviest by unfiltered probability, which is beam search. The logits are those after
    the text and after each node but the last level's. At most ``room`` [r] tokens of a row count. One forward a level.
    """
    text, session = run.text, run.sessions[0]
    beams, logits = Beams.empty(lengths, room, width, depth), []
    last = text.ids[rows, lengths - 1][:, None].expand(-1, width)
    over = torch.zeros_like(last, dtype=torch.bool)
    weights = torch.where(torch.arange(width, device=rows.device) == 0, 0.0, -torch.inf).expand(len(rows), -1)
    for level in range(depth):
        slots = lengths + level * width
        tree = beams.tree if level else None
        logits.append(session.catch_up(text.ids, slots, rows, keep=width if level else 1, tree=tree))
        over = over | (level >= room)[:, None]
        log_q = log_probabilities(logits[-1], run.sampling, filtered=not run.sampling.greedy)
        scores = weights[..., None] + _certain(log_q, last, over)
        place = ((lengths - text.prompts[rows]) * length + level)[:, None] * (width * session.vocab)
        chosen, weights = _choose(scores, run.sampling, lambda index, place=place: gumbel(text, rows, place + index))
        parents, last = chosen // session.vocab, chosen % session.vocab
        over = over.gather(1, parents)
        beams.grow(level, parents, last, weights, over)
        text.ids[rows[:, None], slots[:, None] + torch.arange(width, device=rows.device)] = last
        over = over | text.ends(last)
    return beams, torch.cat(logits, 1)


def _certain(log_q: Tensor, last: Tensor, over: Tensor) -> Tensor:
    """[r, width, vocab] ``log_q`` [r, 1 or width, vocab]; of beams that are ``over`` all of it on their ``last``."""
    certain = log_q.new_full((*last.shape, log_q.shape[-1]), -torch.inf).scatter(2, last[..., None], 0.0)
    return torch.where(over[..., None], certain, log_q)


def _choose(scores: Tensor, sampling: Sampling, noise: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """[r, width] a draw without replacement from ``scores`` [r, width, vocab], flat, and the scores of what is drawn.

    The greatest with Gumbel ``noise`` of the indices [r, m] are such a draw (Gumbel-top-k, 1903.06059); greedy has no
    noise. In the order of their indices, so that what is drawn later does not depend on which of two near-equals is
    the better; scores of -inf come last.
    """
    _, width, vocab = scores.shape
    few = min(width if sampling.greedy else sampling.top_k or vocab, vocab)
    tokens = torch.arange(vocab, device=scores.device).expand_as(scores)
    if few < vocab:  # nothing else can be drawn, and noise is what costs
        scores, tokens = scores.topk(few)
    index = (tokens + vocab * torch.arange(width, device=scores.device)[:, None]).flatten(1)
    scores = scores.flatten(1)
    best = (scores if sampling.greedy else scores + noise(index)).topk(width).indices
    index, scores = index.gather(1, best), scores.gather(1, best)
    order = (index + width * vocab * (scores == -torch.inf)).argsort(1)
    return index.gather(1, order), scores.gather(1, order)


def gumbel(text: Text, rows: Tensor, places: Tensor) -> Tensor:
    """Noise [r, m] for ``rows`` [r] at ``places`` [r, m]."""
    uniform = text.uniform(rows, places, DRAW) + 2.0**-24  # neither 0 nor 1
    return -(-uniform.log()).log()
