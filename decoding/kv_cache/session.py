"""Session: the key-value cache of one model in one decoder. The only file that knows a cache in torch.

Slot = position: the token at position i of a row lies in slot i of that row, so rolling back is only a smaller
``read``; what lies beyond is masked until it is overwritten. Rows have lengths of their own. Only the nodes of a tree
lie in other slots than their positions, after the text, until ``keep`` moves a path of them to where it belongs.
"""

from __future__ import annotations

import time
import weakref
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from decoding.kv_cache.attention import AttentionPositions
from decoding.kv_cache.token_tree import TokenTree

WASTE = 256
"""Tokens of padding that are worth another forward.

A forward reads every weight once, and in that time an accelerator multiplies about this many tokens (its operations per
byte of memory); a CPU multiplies fewer, so there this much padding always costs more than another forward.
"""


@dataclass(frozen=True, slots=True)
class ReadSpan:
    """What the host knows of rows without asking: each has exactly ``unread`` tokens to read, up to ``reach``."""

    reach: int
    unread: int


class ForwardPlan:
    """The next forward: the ``places`` of its queries, how far it reads (``reach``), and where it writes.

    ``slots`` [r * q] are flat over row and slot; ``rows`` None means all of them.
    """

    places: AttentionPositions
    reach: int
    slots: Tensor
    rows: Tensor | None
    rounded: bool = False
    """whether ``reach`` is further than the texts go, as in a recorded forward"""


class SlotLayer(CacheLayerMixin):
    """Keys and values [batch, slots, heads, width] of one layer; the last slot takes what padding writes."""

    def __init__(self, plan: ForwardPlan, batch: int, capacity: int):
        super().__init__()
        self.plan, self.batch, self.capacity = plan, batch, capacity

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        _, heads, _, width = key_states.shape
        with torch.inference_mode(False):  # a cache may outlive its session
            self.keys = key_states.new_zeros(self.batch, self.capacity + 1, heads, width)
            self.values = value_states.new_zeros(self.batch, self.capacity + 1, heads, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self._write(self.keys, key_states), self._write(self.values, value_states)

    def _write(self, store: Tensor, states: Tensor) -> Tensor:
        plan = self.plan
        slots = plan.slots.to(store.device)  # layers may be on devices of their own
        store.flatten(0, 1).index_copy_(0, slots, states.transpose(1, 2).flatten(0, 1))
        seen = store[:, : plan.reach] if plan.rows is None else store[plan.rows.to(store.device), : plan.reach]
        return seen.transpose(1, 2)

    def move(self, old: Tensor, new: Tensor) -> None:
        """Copy what is in the slots ``old`` [n] to the slots ``new`` [n], flat over row and slot."""
        for store in (self.keys.flatten(0, 1), self.values.flatten(0, 1)):
            store.index_copy_(0, new.to(store.device), store[old.to(store.device)])

    def get_seq_length(self, *args) -> int:
        return self.plan.reach - self.plan.places.queries.shape[1]

    def get_max_length(self) -> int:
        return self.capacity

    get_max_cache_shape = get_max_length

    def get_mask_sizes(self, query_length: int, *args) -> tuple[int, int]:
        return self.plan.reach, 0


class SlotCache(Cache):
    """The layers of one model, asked for masks with places where transformers expects one offset."""

    def __init__(self, plan: ForwardPlan, layers: list[SlotLayer]):
        super().__init__(layers=layers)
        self.plan = plan

    def get_query_offset(self, *args) -> AttentionPositions:
        return self.plan.places


class BaseSession:
    """What every session is, whichever engine makes its forwards: how far each row is read, and what that has cost.

    ``read`` [batch] is how many tokens of each row are in the cache; ``reads`` how many each forward has read;
    ``seconds`` is host time inside them (``prefill`` the part that read a prompt; meaningful where forwards are
    synchronous, on CPU).
    """

    def __init__(self, lm, batch: int):
        self.model, self.name, self.vocab, self.batch = lm.model, lm.name, lm.vocab, batch
        self.read = torch.zeros(batch, dtype=torch.long, device=lm.device)
        self.greatest = torch.zeros(1, device=lm.device)
        self.reads: list[int] = []
        self.seconds, self.prefill = 0.0, 0.0

    def next(
        self, ids: Tensor, lengths: Tensor, rows: Tensor, hidden: bool = False, span: ReadSpan | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits [r, vocab] after the last token of ``rows`` [r], and with ``hidden`` its hidden state [r, width]."""
        out = self.catch_up(ids, lengths, rows, hidden=hidden, span=span)
        return (out[0][:, -1], out[1][:, -1]) if hidden else (out[:, -1], None)

    def rollback(self, rows: Tensor, lengths: Tensor) -> None:
        """Forget what ``rows`` [r] hold beyond ``lengths`` [r] tokens."""
        self.read[rows] = torch.minimum(self.read[rows], lengths)

    @property
    def calls(self) -> int:
        """Forwards so far."""
        return len(self.reads)

    @property
    def broken(self) -> Tensor:
        """[1] whether the model has returned NaN, which the greatest of all logits then is too."""
        return self.greatest.isnan()

    def check(self) -> None:
        """Raise FloatingPointError when the model has returned NaN."""
        if bool(self.broken):
            raise FloatingPointError(
                f"the model {self.name} returned NaN logits; check its weights or use a wider dtype"
            )

    def _count(self, logits: Tensor, began: float, prompt: bool) -> None:
        """One forward that ``began`` at that time has given ``logits``."""
        self.greatest = torch.maximum(self.greatest, logits.amax())
        seconds = time.perf_counter() - began
        self.seconds += seconds
        self.prefill += seconds if prompt else 0.0


class Session(BaseSession):
    """One model's cache over the rows of a batch, for models that torch runs."""

    def __init__(self, lm, batch: int, capacity: int):
        super().__init__(lm, batch)
        self.lean, self.recorder, self.capacity = lm.lean(), None, capacity
        if lm.recorders is not None:
            self.recorder = lm.recorders.lend(batch, capacity, self._new_cache)
        if self.recorder is not None:
            self.capacity = self.recorder.capacity
            weakref.finalize(self, lm.recorders.take_back, self.recorder)
        self.cache = self._new_cache(capacity) if self.recorder is None else self.recorder.cache
        self.plan = self.cache.plan
        self.begins = torch.arange(batch, device=lm.device)[:, None] * (self.capacity + 1)

    @torch.no_grad()
    def catch_up(
        self,
        ids: Tensor,
        lengths: Tensor,
        rows: Tensor,
        keep: int = 1,
        hidden: bool = False,
        tree: TokenTree | None = None,
        span: ReadSpan | None = None,
    ):
        """Read what ``rows`` [r] have not read of ``ids`` [batch, ...] up to ``lengths`` [r], in one forward.

        Returns logits [r, keep, vocab] after the last ``keep`` tokens, right-aligned: of a row with fewer unread
        tokens only that many columns mean anything (never fewer than one: the last token is read again if need be).
        With ``hidden`` also the last hidden states [r, keep, width]. What lies beyond the texts of a ``tree`` is read
        as its nodes, in any number of calls. Rows that are far behind the others are read in a forward of their own
        where that saves more than ``WASTE`` tokens of padding. A ``span`` of at least ``keep`` tokens saves asking the
        device what there is to read.
        """
        start, prompt = None, False
        if span is None:
            start = torch.minimum(self.read[rows], lengths - 1)
            gaps = (lengths - start).clamp(min=keep)
            facts = [lengths.max(), gaps.max(), gaps.sum(), start.min(), start.sum(), lengths.sum()]
            reach, longest, wanted, first, read, end = torch.stack(facts).tolist()
            parts = _apart(gaps) if len(rows) * longest - wanted > WASTE else None
            if parts is not None:
                return self._read_apart(parts, ids, lengths, rows, keep, hidden, tree)
            span, new, prompt = ReadSpan(reach, longest), end - read, first == 0
        slots = stored = lengths[:, None] + torch.arange(-span.unread, 0, device=ids.device)
        if start is not None and new < slots.numel():
            stored = torch.where(slots < start[:, None], self.capacity, slots)
            # Padding stands at position 0, where there is something to look at; its output is not used.
            slots = slots.clamp(min=0)
        self.reads.append(slots.numel() if start is None else new)
        self.plan.places = AttentionPositions(slots) if tree is None else tree.places(slots, span.reach)
        self._plan(rows, stored, span.reach)
        logits, states = self._forward(ids[rows[:, None], slots], prompt, keep, hidden)
        self.read[rows] = lengths
        return (logits, states) if hidden else logits

    def keep(self, rows: Tensor, lengths: Tensor, path: Tensor, counts: Tensor) -> None:
        """Add the first ``counts`` [r] nodes of ``path`` [r, k] to the texts of ``lengths`` [r], forget all others."""
        self.read[rows] = lengths + counts
        place = torch.arange(path.shape[1], device=path.device)
        begin = (rows * (self.capacity + 1) + lengths)[:, None]
        old, new = begin + path, begin + place
        if path.is_cpu:  # often nothing moves: the likeliest lies where it belongs; a device would make the host wait
            moved = (path != place) & (place < counts[:, None])
            old, new = old[moved], new[moved]
        for layer in self.cache.layers if old.numel() else ():
            layer.move(old.flatten(), new.flatten())

    def check(self) -> None:
        if self.recorder is not None and bool(self.broken):
            self.recorder.broken = True  # masked, a NaN value would still make NaN of what the next session reads
        super().check()

    def _read_apart(
        self, parts, ids: Tensor, lengths: Tensor, rows: Tensor, keep: int, hidden: bool, tree: TokenTree | None
    ):
        trees = [tree and tree.of(part) for part in parts]
        read = [self.catch_up(ids, lengths[p], rows[p], keep, hidden, t) for p, t in zip(parts, trees, strict=True)]
        back = torch.cat(parts).argsort()
        return tuple(torch.cat(both)[back] for both in zip(*read, strict=True)) if hidden else torch.cat(read)[back]

    def _new_cache(self, capacity: int) -> SlotCache:
        plan = ForwardPlan()
        return SlotCache(
            plan, [SlotLayer(plan, self.batch, capacity) for _ in range(self.model.config.num_hidden_layers)]
        )

    def _plan(self, rows: Tensor, slots: Tensor, reach: int) -> None:
        self.plan.rows = None if len(rows) == self.batch else rows
        begins = self.begins if self.plan.rows is None else self.begins[rows]
        self.plan.slots, self.plan.reach = (begins + slots).flatten(), reach

    def _forward(self, ids: Tensor, prompt: bool, keep: int, hidden: bool) -> tuple[Tensor, Tensor | None]:
        """Logits, cut to the shared vocabulary, and last hidden states of what is planned; counted and timed."""
        began = time.perf_counter()
        logits, states = self._run(ids, keep, hidden)
        logits = logits[..., : self.vocab]
        self._count(logits, began, prompt)
        return logits, states

    def _run(self, ids: Tensor, keep: int, hidden: bool) -> tuple[Tensor, Tensor | None]:
        # Not a method: what is recorded outlives the session.
        forward = partial(_forward, self.model, self.cache) if self.lean is None else partial(self.lean, self.cache)
        replayed = None if self.recorder is None else self.recorder.run(forward, ids, keep, hidden)
        return forward(ids, keep, hidden) if replayed is None else replayed


def _forward(model, cache: SlotCache, ids: Tensor, keep: int, hidden: bool) -> tuple[Tensor, Tensor | None]:
    options = {"logits_to_keep": keep, "output_hidden_states": hidden, "use_cache": True}
    out = model(input_ids=ids, position_ids=cache.plan.places.queries, past_key_values=cache, **options)
    return out.logits, out.hidden_states[-1][:, -keep:] if hidden else None


def _apart(gaps: Tensor) -> tuple[Tensor, Tensor] | None:
    """Which rows to read first and which after them, the split that pads least; None if it saves too little."""
    longest, order = gaps.sort(descending=True)
    saved = (longest[0] - longest[1:]) * torch.arange(len(gaps) - 1, 0, -1, device=gaps.device)
    most, n = torch.stack(saved.max(0)).tolist()
    return (order[: n + 1], order[n + 1 :]) if most > WASTE else None
