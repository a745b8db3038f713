"""Beam sampling: several continuations in one cache, drawn in proportion to their joint probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from decoding.acceptance.draft_block import gather_at, log_probabilities
from decoding.drafting.draft_model import unread_span
from decoding.kv_cache.session import ReadSpan
from decoding.kv_cache.token_tree import TokenTree
from decoding.state.generation_state import GenerationState
from decoding.state.sampling import DRAW, Sampling
from decoding.state.token_buffer import TokenBuffer


@dataclass(slots=True)
class Beams:
    """All nodes of ``width`` beams: node i is beam ``i % width`` of level ``i // width``.

    A beam that has ended, by an EOS or its row's budget, repeats its last token with probability 1, in ``idle`` nodes.
    """

    tokens: Tensor  # [r, n]
    parents: Tensor  # [r, n] parent of each node, -1 for the text
    weights: Tensor  # [r, n] log-probability, as drawn, of the path to each node; -inf where there is no such beam
    idle: Tensor  # [r, n]
    tree: TokenTree
    width: int

    @classmethod
    def empty(cls, lengths: Tensor, room: Tensor, width: int, depth: int) -> Beams:
        """No beams yet, after texts of ``lengths`` [r]; positions are clamped to ``room`` [r] tokens."""
        r, n = len(lengths), width * depth
        level = torch.arange(n, device=lengths.device) // width
        depths = torch.minimum(level + 1, room.clamp(min=1)[:, None])
        seen = torch.eye(n, dtype=torch.bool, device=lengths.device).repeat(r, 1, 1)
        return cls(
            tokens=lengths.new_zeros(r, n),
            parents=lengths.new_full((r, n), -1),
            weights=torch.full((r, n), -torch.inf, device=lengths.device),
            idle=level >= room[:, None],
            tree=TokenTree(lengths, depths, seen),
            width=width,
        )

    @property
    def levels(self) -> Tensor:
        """[n] level of each node"""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) // self.width

    @property
    def alive(self) -> Tensor:
        """[r, n] nodes that exist"""
        return self.weights > -torch.inf

    @property
    def sizes(self) -> Tensor:
        """[r, n] length of the path to each node, without idle nodes."""
        return (self.tree.seen & ~self.idle[:, None]).sum(-1) * self.alive

    def along(self, values: Tensor) -> Tensor:
        """[r, n] sum of ``values`` [r, n] over the path to each node, without idle nodes."""
        return torch.where(self.tree.seen & ~self.idle[:, None], values[:, None], 0.0).sum(-1)

    def path(self, nodes: Tensor) -> Tensor:
        """[r, depth] the path to ``nodes`` [r]; arbitrary on deeper levels."""
        seen = gather_at(self.tree.seen, nodes).view(len(nodes), -1, self.width)
        return seen.int().argmax(-1) + self.width * torch.arange(seen.shape[1], device=nodes.device)

    def best(self) -> Tensor:
        """[r] the last node of the beam of greatest weight."""
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
            tree=TokenTree(self.tree.start, self.tree.depth.gather(1, path), seen.expand(r, -1, -1)),
            width=1,
        )

    def grow(self, level: int, beams: Tensor, tokens: Tensor, weights: Tensor, over: Tensor) -> None:
        """Add level ``level``: ``tokens`` [r, width] after the ``beams`` [r, width] of the level before."""
        here = slice(level * self.width, (level + 1) * self.width)
        self.tokens[:, here], self.weights[:, here] = tokens, weights
        self.idle[:, here] = over
        if level:
            self.parents[:, here] = parents = beams + (level - 1) * self.width
            self.tree.seen[:, here] |= gather_at(self.tree.seen, parents)


def sample_beams(
    state: GenerationState, rows: Tensor, lengths: Tensor, room: Tensor, width: int, depth: int, length: int
) -> tuple[Beams, list[Tensor]]:
    """``width`` beams of ``depth`` tokens by the first model, and its logits: [r, 1, vocab] on the first level,
    [r, width, vocab] on the others.

    Each level draws ``width`` of the continuations of all beams in proportion to their weights, without replacement;
    greedy takes the heaviest by unfiltered probability: beam search. A beam ends after ``room`` [r] tokens.
    """
    buffer, session = state.buffer, state.sessions[0]
    beams, logits = Beams.empty(lengths, room, width, depth), []
    last = buffer.ids[rows, lengths - 1][:, None].expand(-1, width)
    over = torch.zeros_like(last, dtype=torch.bool)
    weights = torch.where(torch.arange(width, device=rows.device) == 0, 0.0, -torch.inf).expand(len(rows), -1)
    for level in range(depth):
        slots = lengths + level * width
        tree = beams.tree if level else None
        span = ReadSpan(buffer.longest + level * width, width) if level else unread_span(buffer, length)
        seen = session.catch_up(buffer.ids, slots, rows, logits_to_keep=width if level else 1, tree=tree, span=span)
        logits.append(state.processed(seen, rows, lengths, tree, level * width))
        over = over | (level >= room)[:, None]
        tokens, log_q = _continuations(logits[-1], state.sampling, width)
        tokens, log_q = _repeated(tokens, log_q, last, over)
        index = tokens + session.vocab * torch.arange(width, device=rows.device)[:, None]
        counter = ((lengths - buffer.prompts[rows]) * length + level)[:, None] * (width * session.vocab)
        noise = None if state.sampling.greedy else gumbel(buffer, rows, counter + index.flatten(1))
        chosen, weights = _choose(index, weights[..., None] + log_q, noise)
        parents, last = chosen // session.vocab, chosen % session.vocab
        over = over.gather(1, parents)
        beams.grow(level, parents, last, weights, over)
        buffer.ids[rows[:, None], slots[:, None] + torch.arange(width, device=rows.device)] = last
        over = over | buffer.ends(last)
    return beams, logits


def _continuations(logits: Tensor, sampling: Sampling, width: int) -> tuple[Tensor, Tensor]:
    """The tokens that may continue a beam, and their log-probabilities as drawn, unfiltered if greedy.

    Both [r, width, few], from ``logits`` [r, width, vocab], or [r, 1, vocab] for all beams.
    """
    log_q = log_probabilities(logits, sampling, filtered=not sampling.greedy).expand(-1, width, -1)
    vocab = logits.shape[-1]
    few = width if sampling.greedy else vocab if sampling.top_k is None else sampling.top_k
    if few < vocab:  # no other token can be drawn, and noise is expensive
        log_q, tokens = log_q.topk(few)
        return tokens, log_q
    return torch.arange(vocab, device=logits.device).expand_as(log_q), log_q


def _repeated(tokens: Tensor, log_q: Tensor, last: Tensor, over: Tensor) -> tuple[Tensor, Tensor]:
    """``tokens`` and ``log_q`` [r, width, few]; for beams that are ``over`` [r, width] the ``last``, with certainty."""
    certain = torch.full_like(log_q[:1, :1], -torch.inf)
    certain[..., 0] = 0.0
    return torch.where(over[..., None], last[..., None], tokens), torch.where(over[..., None], certain, log_q)


def _choose(index: Tensor, scores: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """[r, width] drawn without replacement from ``index`` [r, width, few] by exp(``scores``), and the scores of these.

    The greatest with Gumbel ``noise`` [r, width * few] are such a draw (Gumbel-top-k, 1903.06059); greedy has none.
    Sorted by index, so that later draws do not depend on how near-ties are ranked; scores of -inf come last.
    """
    width = scores.shape[1]
    index, scores = index.flatten(1), scores.flatten(1)
    best = (scores if noise is None else scores + noise).topk(width).indices
    index, scores = index.gather(1, best), scores.gather(1, best)
    order = torch.where(scores == -torch.inf, torch.iinfo(index.dtype).max, index).argsort(1)
    return index.gather(1, order), scores.gather(1, order)


def gumbel(buffer: TokenBuffer, rows: Tensor, counters: Tensor) -> Tensor:
    """Gumbel noise [r, m] for ``rows`` [r] at ``counters`` [r, m]."""
    uniform = buffer.uniform(rows, counters, DRAW) + 2.0**-24  # neither 0 nor 1
    return -(-uniform.log()).log()
