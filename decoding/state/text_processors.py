"""The processors of one generation, applied to the logits of texts and of every place of their drafts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from decoding.errors import UnwritableText
from decoding.kv_cache.token_tree import TokenTree
from decoding.state.texts import Processor, Texts

CHUNK = 64  # places of a finished text that are processed at once, which bounds the memory


class TextProcessors:
    """Processors in order. They never make the host wait. ``about`` says in words which settings they are."""

    def __init__(self, processors: Sequence[Processor], vocab: int, about: str):
        self.processors, self.vocab, self.about = list(processors), vocab, about
        self.emptied: Tensor | None = None
        """[1] whether a text had no token left that could follow it"""

    def next(self, logits: Tensor, ids: Tensor, lengths: Tensor, prompts: Tensor, written: Tensor) -> Tensor:
        """float32 [n, vocab] for ``logits`` [n, vocab] after the first ``lengths`` [n] of ``ids`` [n, width].

        ``prompts`` [n]: how many of these tokens are the prompt; ``written`` [n]: how many are no draft.
        """
        return self._filled(self._run(logits, ids, lengths, prompts), lengths == written)

    def places(
        self,
        logits: Tensor,
        ids: Tensor,
        lengths: Tensor,
        prompts: Tensor,
        tree: TokenTree | None = None,
        nodes: int = 0,
    ) -> Tensor:
        """float32 [r, m, vocab] for ``logits`` [r, m, vocab] at m places of each text and its draft.

        Place j is after the first ``lengths`` [r] + j of ``ids`` [r, width]. With a ``tree`` the last place is after
        its first ``nodes`` nodes have been read, and sees the text and the ancestors of the last of these, and so on
        back to the first node; the place before that is after the text.
        """
        (r, m), width = logits.shape[:2], ids.shape[1]
        if tree is None:
            texts, ends = ids[:, None].expand(r, m, width), lengths[:, None] + torch.arange(m, device=ids.device)
        else:
            texts, ends = _paths(ids, tree, torch.arange(nodes - m, nodes, device=ids.device))
        prompts = prompts[:, None].expand(r, m).flatten()
        whole = self._run(logits.flatten(0, 1), texts.flatten(0, 1), ends.flatten(), prompts).view(r, m, -1)
        return self._filled(whole, torch.arange(m, device=ids.device) == (0 if tree is None else m - 1 - nodes))

    def answer(self, logits: Tensor, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
        """float32 [n, vocab] for the ``logits`` [n, vocab] with which the n tokens of ``answer`` were written."""
        ids = torch.tensor([*prompt, *answer], device=logits.device)
        lengths = len(prompt) + torch.arange(len(answer), device=logits.device)
        prompts = torch.full_like(lengths, len(prompt))
        parts = zip(logits.split(CHUNK), lengths.split(CHUNK), prompts.split(CHUNK), strict=True)
        return torch.cat([self._run(some, ids.expand(len(at), -1), at, begin) for some, at, begin in parts])

    def check(self) -> None:
        """Raise UnwritableText if a text had no token left."""
        if self.emptied is not None and bool(self.emptied):
            raise UnwritableText(f"the generation_config ({self.about}) leaves a text no token to go on with")

    def _run(self, logits: Tensor, ids: Tensor, lengths: Tensor, prompts: Tensor) -> Tensor:
        width = ids.shape[1]
        index = lengths[:, None] - width + torch.arange(width, device=ids.device)
        texts = Texts(ids.gather(1, index.clamp(min=0)).masked_fill(index < 0, self.vocab), lengths, prompts)
        logits = logits.to(torch.float32, copy=True)  # the one copy: processors change it in place
        for processor in self.processors:
            logits = processor(texts, logits)
        return logits

    def _filled(self, logits: Tensor, real: Tensor) -> Tensor:
        """``logits`` [..., vocab] with token 0 certain where all are -inf, so that no NaN arises.

        ``check`` refuses it where the place is ``real`` [...]. A text may never get to the places of its draft.
        """
        empty = logits.amax(-1, keepdim=True) == -math.inf
        found = (empty & real[..., None]).any().view(1)
        self.emptied = found if self.emptied is None else self.emptied | found
        logits[..., :1].masked_fill_(empty, 0.0)
        return logits


def _paths(ids: Tensor, tree: TokenTree, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """The texts [r, m, width] that end in ``nodes`` [m] of a tree, -1 for the text itself, and their lengths [r, m].

    ``ids`` [r, width]: the texts, and after each of them the tokens of its nodes.
    """
    (r, n), m, width = tree.depth.shape, len(nodes), ids.shape[1]
    node = nodes.clamp(min=0)
    seen = tree.seen[:, node] & (nodes >= 0)[:, None]
    column = torch.arange(n, device=ids.device)
    tokens = ids.gather(1, (tree.start[:, None] + column).clamp(max=width - 1))[:, None].expand(r, m, n)
    # What a node does not see goes to a column of its own.
    to = torch.where(seen, (tree.start[:, None] + tree.depth - 1)[:, None], width)
    texts = torch.nn.functional.pad(ids[:, None].expand(r, m, width), (0, 1)).scatter(2, to, tokens)
    return texts[..., :width], tree.start[:, None] + torch.where(nodes < 0, 0, tree.depth[:, node])
