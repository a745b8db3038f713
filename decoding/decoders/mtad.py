"""Multi-token assisted decoding: beams of the draft approximate the joint distribution of the target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from decoding.acceptance.draft_block import gather_at, log_probabilities
from decoding.acceptance.lossy import Joint
from decoding.drafting.beam_sampling import Beams, sample_beams
from decoding.drafting.draft_model import draft_noise
from decoding.models.lm import LM
from decoding.state.generation_state import GenerationState
from decoding.state.sampling import REPLACE
from decoding.state.token_buffer import Commit


class MTAD:
    """Draft ``length`` tokens by ``beams`` beams and keep the longest prefix that is jointly likely enough.

    MTAD (Qin et al. 2407.09722): beams are sampled (if greedy, searched) with the draft, and the target reads the
    likeliest one in one forward. Its longest prefix with log P - log Q > log ``tau`` is kept, P and Q the products of p
    and q over it, even past prefixes that fail; the next token is drawn from p. With ``tree`` (MMTAD) the target reads
    the nodes of all beams in that forward. A node passes if its own P is large enough against Q of the likeliest beam
    at that depth (as in the authors' code); the longest passing path is kept, of several the one of greatest P. So for
    one text a tree keeps at least as much as a chain, and one beam is a chain.

    Beams are drawn from the filtered distributions (temperature, top-k, top-p), each level without replacement: where
    the draft is confident, drawing with replacement would make all beams equal. P and Q are unfiltered, as in ``MTJD``,
    or ``filtered`` as published: then a token outside the target's filter rejects all that follow, and greedy, whose
    filter leaves one token, keeps the target's own text. A block that ends in EOS stands for all its continuations;
    the budget may cut the last block.

    Raises ValueError unless there are a draft and a target, ``beams`` and ``length`` are at least 1 and ``tau`` at
    least 0 (which rejects nothing; inf rejects everything), or where two tokens cannot share a position (ALiBi).
    """

    def __init__(
        self,
        models: Sequence[LM],
        beams: int = 4,
        length: int = 4,
        tau: float = 0.5,
        tree: bool = False,
        filtered: bool = False,
    ):
        if len(models) != 2 or any(hasattr(model, "propose") for model in models):
            raise ValueError(f"MTAD takes [draft, target], two models, not {models}")
        if beams < 1 or length < 1:
            raise ValueError(f"beams and length must be at least 1, not {beams} and {length}")
        for lm in models if tree else models[:1]:
            if beams > 1 and lm.chains_only:
                raise ValueError(
                    f"{lm.name} {lm.chains_only} and cannot read beams; take beams=1"
                    + ", or tree=False" * (lm is models[1])
                )
        self.models, self.beams, self.length, self.tree = list(models), beams, length, tree
        self.accept = Joint(tau, filtered)
        self.scratch = beams * length + 1

    def write(self, state: GenerationState) -> Iterator[Commit]:
        while True:
            yield self._round(state, state.buffer.rows)

    def _round(self, state: GenerationState, rows: Tensor) -> Commit:
        buffer, (small, large) = state.buffer, state.sessions
        lengths = buffer.lengths[rows]
        room = buffer.draft_room(rows, self.length)
        depth = self.length if buffer.room > self.length else max(1, int(room.max()))
        beams, q = sample_beams(state, rows, lengths, room, self.beams, depth, self.length)
        best = beams.path(beams.best())
        drafted = beams if self.tree else beams.only(best)
        n = drafted.tokens.shape[1]
        buffer.ids[rows[:, None], lengths[:, None] + torch.arange(n, device=rows.device)] = drafted.tokens
        span = buffer.span(n + 1, n)
        p = large.catch_up(buffer.ids, lengths + n, rows, logits_to_keep=n + 1, tree=drafted.tree, span=span)
        p = state.processed(p, rows, lengths, drafted.tree, n)
        node, accepted = self._accept(state, beams, best, q, drafted, p)
        path = drafted.path(node)
        if self.tree:
            large.keep_path(rows, lengths, path, accepted)
        else:  # the slots of a chain are its positions
            large.rollback(rows, lengths + accepted)
        # The draft has not read its last level.
        small.keep_path(rows, lengths, (path if self.tree else best)[:, : depth - 1], accepted.clamp(max=depth - 1))
        last = torch.where(accepted > 0, gather_at(path, accepted - 1) + 1, 0)
        noise = draft_noise(buffer, rows, lengths - buffer.prompts[rows], accepted, REPLACE, self.length)
        after = state.sampling.draw(gather_at(p, last), noise)
        state.drafted += drafted.sizes.amax(1).sum()
        return Commit.checked(rows, drafted.tokens.gather(1, path), accepted, after)

    def _accept(self, state: GenerationState, beams: Beams, best: Tensor, q: list[Tensor], drafted: Beams, p: Tensor):
        """The last accepted node [r], the likeliest of the deepest that pass, and its path's length [r] or 0.

        ``q`` are the draft's logits, from ``sample_beams``, ``p`` [r, 1 + n, vocab] the target's after the text and
        after each node; ``best`` [r, depth] is the likeliest beam.
        """
        log_p = self._joint(state, drafted, p)
        before = (beams.parents.gather(1, best) % beams.width).unbind(1)
        q = torch.stack([q[0][:, 0], *map(gather_at, q[1:], before[1:])], 1)
        log_q = self._joint(state, beams.only(best), q)
        passes = self.accept.passes(log_p - log_q[:, drafted.levels]) & drafted.alive
        depth = torch.where(passes, drafted.levels + 1, 0)
        deepest = passes & (depth == depth.amax(1, keepdim=True))
        node = log_p.masked_fill(~deepest, -torch.inf).argmax(1)
        return node, gather_at(drafted.sizes, node) * passes.any(1)

    def _joint(self, state: GenerationState, drafted: Beams, logits: Tensor) -> Tensor:
        """[r, n] log-probability of the path to each node, from logits [r, 1 + n, vocab] after text and nodes."""
        logs = log_probabilities(logits, state.sampling, self.accept.filtered)
        rows = torch.arange(len(logits), device=logits.device)[:, None]
        return drafted.along(logs[rows, drafted.parents + 1, drafted.tokens])


MMTAD = partial(MTAD, tree=True)
