"""Multi-token joint decoding: a model writes blocks of tokens by their joint probability."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from decoding.acceptance.draft_block import gather_at
from decoding.kv_cache.session import Session
from decoding.models.lm import LM
from decoding.state.generation_state import GenerationState
from decoding.state.token_buffer import Commit

MAX_BLOCKS = 1_000_000  # most blocks that are compared
SLOTS = 256  # most blocks of one text that are read at once


class MTJD:
    """Write the jointly most likely ``block`` tokens, then the next ones (Qin et al. 2407.09722, section 3).

    A block is one token of a vocabulary of vocab ** block: greedy takes the likeliest, and temperature, top-k and
    top-p act on the joint distribution of blocks. At temperature 1 without filters the text is distributed as the
    model's own (chain rule). An EOS ends a block early; the budget may cut the last one. With ``beams`` None all blocks
    are compared: the reference that MTAD approximates, slow, for small vocabularies. With ``beams`` only the blocks
    found by a beam search of this width are compared, and drawn from.

    Raises ValueError unless ``block`` and ``beams`` are at least 1, and for more than a million blocks to compare.
    """

    def __init__(self, target: LM, block: int = 4, beams: int | None = None):
        if block < 1 or (beams is not None and beams < 1):
            raise ValueError(f"block and beams must be at least 1, not {block} and {beams}")
        if beams is None and target.vocab**block > MAX_BLOCKS:
            raise ValueError(f"{target.vocab} ** {block} blocks are over {MAX_BLOCKS}; give beams, or a shorter block")
        self.models, self.block, self.beams, self.scratch = [target], block, beams, block

    def write(self, state: GenerationState) -> Iterator[Commit]:
        buffer, search = state.buffer, BlockSearch(self, state)
        while True:
            rows = buffer.rows
            sizes = (buffer.limits[rows] - buffer.lengths[rows]).clamp(max=self.block)
            tokens = rows.new_zeros(len(rows), self.block)
            for size in {self.block} if buffer.room >= self.block else set(sizes.tolist()):
                which = (sizes == size).nonzero().squeeze(1)
                blocks, scores = search.blocks(rows[which], size)
                chosen = state.draw(scores, rows[which], buffer.lengths[rows[which]])
                tokens[which, :size] = gather_at(blocks, chosen)
            yield Commit(rows, tokens, torch.zeros_like(tokens), sizes)


class BlockSearch:
    """Beam search from the end of every text, with a session of ``slots`` rows per text."""

    def __init__(self, decoder: MTJD, state: GenerationState):
        self.buffer, self.vocab, self.processors = state.buffer, state.sessions[0].vocab, state.processors
        self.width = MAX_BLOCKS if decoder.beams is None else decoder.beams
        self.slots = min(self.width, self.vocab ** (decoder.block - 1), SLOTS)
        self.ids = state.buffer.ids.repeat_interleave(self.slots, 0)
        self.session: Session = decoder.models[0].session(len(self.ids), state.buffer.capacity)
        self.session.vocab = self.vocab
        state.sessions[:] = [self.session]  # so that it is checked and counted
        self.buffer.on_restart.append(self._restart)

    def blocks(self, rows: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Blocks [r, n, size] and their joint log-probabilities [r, n]; an EOS is repeated up to the block's end."""
        blocks = rows.new_zeros(len(rows), 1, 0)
        scores = torch.zeros(len(rows), 1, device=rows.device)
        for _ in range(size):
            scores = (scores[..., None] + self._next(rows, blocks)).flatten(1)
            few = torch.arange(scores.shape[1], device=rows.device).expand_as(scores)
            if scores.shape[1] > self.width:
                # In the order of the vocabulary, so that a draw does not depend on how near-ties are ranked.
                few = scores.topk(self.width, sorted=False).indices.sort(1).values
            parents = blocks.gather(1, (few // self.vocab)[..., None].expand(-1, -1, blocks.shape[2]))
            blocks = torch.cat([parents, (few % self.vocab)[..., None]], 2)
            scores = scores.gather(1, few)
        return blocks, scores

    def _restart(self, row: int) -> None:
        """Forget the text of a row that begins another one, in all of its slots."""
        slots = row * self.slots + torch.arange(self.slots, device=self.ids.device)
        self.session.rollback(slots, torch.zeros_like(slots))

    def _next(self, rows: Tensor, blocks: Tensor) -> Tensor:
        """Log-probabilities [r, n, vocab] of the token after each of ``blocks`` [r, n, d]."""
        read = [self._read(rows, part) for part in blocks.split(self.slots, 1)]
        logp = torch.cat(read, 1)
        if blocks.shape[2]:
            ended = self.buffer.ends(blocks[..., -1])
            certain = torch.full_like(logp, -math.inf).scatter(2, blocks[..., -1:], 0.0)
            logp = torch.where(ended[..., None], certain, logp)
        return logp

    def _read(self, rows: Tensor, blocks: Tensor) -> Tensor:
        """``_next`` for at most ``slots`` blocks, without the rule for EOS."""
        r, n, d = blocks.shape
        slots = (rows[:, None] * self.slots + torch.arange(n, device=rows.device)).flatten()
        lengths = self.buffer.lengths[rows].repeat_interleave(n)
        self.ids[slots] = self.buffer.ids[rows].repeat_interleave(n, 0)
        self.ids[slots[:, None], lengths[:, None] + torch.arange(d, device=rows.device)] = blocks.flatten(0, 1)
        logits = self.session.catch_up(self.ids, lengths + d, slots)
        self.session.rollback(slots, lengths)  # the slot will hold another block next time
        logits = logits[:, -1].float()
        if self.processors is not None:
            prompts = self.buffer.prompts[rows].repeat_interleave(n)
            logits = self.processors.next(logits, self.ids[slots], lengths + d, prompts, lengths)
        return logits.log_softmax(-1).view(r, n, -1)
