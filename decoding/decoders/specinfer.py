"""Speculative decoding with a tree of drafted tokens, which the target reads in one forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from decoding.acceptance.draft_block import gather_at
from decoding.drafting.beam_sampling import gumbel
from decoding.drafting.draft_model import draft_noise, unread_span
from decoding.kv_cache.session import ReadSpan
from decoding.kv_cache.token_tree import TokenTree
from decoding.models.lm import LM
from decoding.state.generation_state import GenerationState
from decoding.state.sampling import ACCEPT, REPLACE, sample_from_weights
from decoding.state.token_buffer import Commit


class SpecInfer:
    """Draft ``branches[l]`` different tokens after every node of level l; the target accepts one path.

    Tree and verification are SpecInfer's (Miao et al. 2305.09781, section 4): the children of a node are tried in the
    order in which they were drawn. Child x is accepted with probability min(1, p(x) / q(x)); a rejection replaces p by
    max(0, p - q), normalised. Children are drawn without replacement, so q then loses x too (recursive rejection
    sampling, Jeon et al. 2402.14160): where the draft is confident, drawing with replacement would try one token again
    and again. The output is distributed as the target's own. Greedy takes the draft's likeliest tokens.

    Raises ValueError unless there are a draft and a target and every branch is at least 1, or where two tokens cannot
    share a position (ALiBi).
    """

    def __init__(self, models: Sequence[LM], branches: Sequence[int] = (4, 2, 2)):
        if len(models) != 2 or any(hasattr(model, "propose") for model in models):
            raise ValueError(f"SpecInfer takes [draft, target], two models, not {models}")
        if not branches or min(branches) < 1:
            raise ValueError(f"branches must be numbers of at least 1, one a level, not {tuple(branches)}")
        for lm in models if max(branches) > 1 else ():
            if lm.chains_only:
                raise ValueError(f"{lm.name} {lm.chains_only} and cannot read a tree; take branches of 1")
        self.models, self.branches = list(models), tuple(branches)
        self.shape = TreeShape(self.branches)
        self.scratch = self.shape.nodes + 1

    def write(self, state: GenerationState) -> Iterator[Commit]:
        self.shape.to(state.buffer.device)
        while True:
            yield self._round(state, state.buffer.rows)

    def _round(self, state: GenerationState, rows: Tensor) -> Commit:
        buffer, (small, large) = state.buffer, state.sessions
        lengths = buffer.lengths[rows]
        room = buffer.draft_room(rows, len(self.branches))
        depth = len(self.branches) if buffer.room > len(self.branches) else max(1, int(room.max()))
        tree = self.shape.tree(lengths, room, depth)
        tokens, q = self._draft(state, rows, lengths, tree, depth)
        n = tokens.shape[1]
        span = buffer.span(n + 1, n)
        logits = large.catch_up(buffer.ids, lengths + n, rows, logits_to_keep=n + 1, tree=tree, span=span)
        logits = state.processed(logits, rows, lengths, tree, n)
        if state.sampling.greedy:
            path, accepted, after = self._verify_greedy(room, tokens, logits.argmax(-1))
        else:
            p = state.sampling.probabilities(logits)
            path, accepted, after = self._verify(state, rows, lengths - buffer.prompts[rows], room, tokens, q, p)
        large.keep_path(rows, lengths, path, accepted)
        # The draft has not read its last level.
        small.keep_path(rows, lengths, path[:, : depth - 1], accepted.clamp(max=depth - 1))
        state.drafted += room.sum()
        return Commit.checked(rows, tokens.gather(1, path), accepted, after)

    def _draft(
        self, state: GenerationState, rows: Tensor, lengths: Tensor, tree: TokenTree, depth: int
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens [r, n] of all nodes and, unless greedy, q [r, 1 + n - leaves, vocab] after text and nodes."""
        buffer, session, shape = state.buffer, state.sessions[0], self.shape
        tokens, seen = lengths.new_zeros(len(rows), 0), []
        for level in range(depth):
            end, read, width = lengths + tokens.shape[1], tree if level else None, shape.widths[level]
            span = (
                ReadSpan(buffer.longest + tokens.shape[1], width) if level else unread_span(buffer, len(self.branches))
            )
            logits = session.catch_up(buffer.ids, end, rows, logits_to_keep=width, tree=read, span=span)
            logits = state.processed(logits, rows, lengths, read, tokens.shape[1])
            if state.sampling.greedy:
                drawn = logits.topk(self.branches[level]).indices.flatten(1)
            else:
                seen.append(state.sampling.probabilities(logits))
                counter = (lengths - buffer.prompts[rows])[:, None] * (shape.nodes + 1) + shape.above(level)
                drawn = self._children(state, rows, seen[-1], counter, self.branches[level]).flatten(1)
            buffer.ids[rows[:, None], end[:, None] + torch.arange(drawn.shape[1], device=rows.device)] = drawn
            tokens = torch.cat([tokens, drawn], 1)
        return tokens, torch.cat(seen, 1) if seen else None

    def _children(self, state: GenerationState, rows: Tensor, q: Tensor, counter: Tensor, width: int) -> Tensor:
        """[r, m, width] different tokens after each of m nodes, in the order in which they are drawn from q."""
        vocab, top_k = q.shape[-1], state.sampling.top_k
        few = vocab if top_k is None else min(max(width, top_k), vocab)
        q, tokens = q.topk(few)  # no other token can be drawn, and noise is expensive
        gumbels = gumbel(state.buffer, rows, (counter[..., None] * vocab + tokens).flatten(1)).view_as(q)
        return tokens.gather(-1, (q.log() + gumbels).topk(width).indices)

    def _verify_greedy(self, room: Tensor, tokens: Tensor, best: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``_verify`` for greedy decoding: accept the children that are the target's ``best`` [r, n + 1]."""
        node, accepted = torch.full_like(room, -1), torch.zeros_like(room)
        path = []
        for level in range(self.shape.begins.index(tokens.shape[1])):
            children = self.shape.children(level, node)
            going = (accepted == level) & (level < room)
            right = (tokens.gather(1, children) == gather_at(best, node + 1)[:, None]) & going[:, None]
            chosen = right.any(1)
            node = torch.where(chosen, gather_at(children, right.long().argmax(1)), node)
            accepted = accepted + chosen
            path.append(torch.where(chosen, node, 0))
        return torch.stack(path, 1), accepted, gather_at(best, node + 1)

    def _verify(
        self, state: GenerationState, rows: Tensor, starts: Tensor, room: Tensor, tokens: Tensor, q: Tensor, p: Tensor
    ):
        """The accepted path [r, depth] from the root down, its length [r], and the token [r] after it."""
        buffer, shape = state.buffer, self.shape
        noise = lambda place, stream: draft_noise(buffer, rows, starts, place, stream, shape.nodes)  # noqa: E731
        node, accepted, left = torch.full_like(rows, -1), torch.zeros_like(rows), p[:, 0]
        path = []
        for level in range(shape.begins.index(tokens.shape[1])):
            children = shape.children(level, node)
            going = (accepted == level) & (level < room)
            uniform = torch.stack([noise(child, ACCEPT) for child in children.unbind(1)], 1)
            kept, left = try_children(left, gather_at(q, node + 1), tokens.gather(1, children), uniform, going)
            chosen = kept >= 0
            node = torch.where(chosen, gather_at(children, kept.clamp(min=0)), node)
            left = torch.where(chosen[:, None], gather_at(p, node + 1), left)
            accepted = accepted + chosen
            path.append(torch.where(chosen, node, 0))
        return torch.stack(path, 1), accepted, sample_from_weights(left, noise(accepted, REPLACE))


def try_children(p: Tensor, q: Tensor, tokens: Tensor, uniform: Tensor, going: Tensor) -> tuple[Tensor, Tensor]:
    """Index [r] of the accepted child among ``tokens`` [r, width], -1 for none, and the residual of p [r, vocab].

    The tokens were drawn from q [r, vocab] in this order, without replacement. Rows not ``going`` [r] keep p.
    """
    kept = torch.full_like(tokens[:, 0], -1)
    for i, token in enumerate(tokens.unbind(1)):
        token = token[:, None]
        asked = going & (kept < 0)
        chance = p.gather(1, token).squeeze(1)
        drawn = q.gather(1, token).squeeze(1)
        asked &= drawn > 0  # 0 where there were fewer tokens than children
        accepted = uniform[:, i] * drawn < chance
        kept = torch.where(asked & accepted, i, kept)
        rejected = (asked & ~accepted)[:, None]
        p = torch.where(rejected, _normalised((p - q).clamp(min=0), p), p)
        others = q.scatter(1, token, 0.0)
        q = torch.where(rejected, _normalised(others, others), q)
    return kept, p


def _normalised(weights: Tensor, otherwise: Tensor) -> Tensor:
    """``weights`` [r, vocab] scaled to sum to 1; ``otherwise`` where rounding has left no weight."""
    total = weights.sum(-1, keepdim=True)
    return torch.where(total > 0, weights / total, otherwise)


class TreeShape:
    """The parents of the nodes, the same for every text: nodes level by level, the children of a node adjacent."""

    def __init__(self, branches: Sequence[int]):
        self.branches, self.widths, self.begins = branches, [1], [0]
        for branch in branches:
            self.widths.append(self.widths[-1] * branch)
            self.begins.append(self.begins[-1] + self.widths[-1])
        self.nodes = self.begins[-1]
        self.levels = torch.repeat_interleave(torch.arange(len(branches)), torch.tensor(self.widths[1:]))
        self.seen = torch.eye(self.nodes, dtype=torch.bool)
        for level in range(1, len(branches)):
            here = torch.arange(self.begins[level], self.begins[level + 1])
            self.seen[here] |= self.seen[self.begins[level - 1] + (here - self.begins[level]) // branches[level]]

    def to(self, device: torch.device) -> None:
        self.levels, self.seen = self.levels.to(device), self.seen.to(device)

    def above(self, level: int) -> Tensor:
        """[m] the parents of the nodes of ``level``, counted from 0 for the text."""
        begin = 1 + self.begins[level - 1] if level else 0
        return torch.arange(begin, begin + self.widths[level], device=self.levels.device)

    def children(self, level: int, node: Tensor) -> Tensor:
        """[r, branch] children of ``node`` [r], -1 for the text, of the level above ``level``; arbitrary for others."""
        above = (node - self.begins[level - 1]).clamp(0, self.widths[level] - 1) if level else torch.zeros_like(node)
        branch = self.branches[level]
        return self.begins[level] + above[:, None] * branch + torch.arange(branch, device=node.device)

    def tree(self, lengths: Tensor, room: Tensor, depth: int) -> TokenTree:
        """The first ``depth`` levels after texts of ``lengths`` [r]; positions are clamped to ``room`` [r] tokens."""
        n, r = self.begins[depth], len(lengths)
        depths = torch.minimum(self.levels[:n] + 1, room.clamp(min=1)[:, None])
        return TokenTree(lengths, depths, self.seen[:n, :n].expand(r, -1, -1))


def from_settings(models: Sequence[LM], beams: int, length: int) -> SpecInfer:
    """A tree that branches at its root only: ``beams`` drafts of ``length`` tokens, as the registry calls it."""
    return SpecInfer(models, [beams] + [1] * (length - 1))
