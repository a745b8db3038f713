"""Session: the key-value cache of one model in one decoder. The only file that knows a cache in torch.

Slot = position: the token at position i of a row is in slot i of that row, so a rollback only lowers ``read``; later
slots are masked until they are overwritten. Each row has its own length. The nodes of a tree are the exception: they
are in slots after the text, whatever their positions, until ``keep_path`` moves one path to its positions.
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
from decoding.models.vocabulary import SharedIds

WASTE, CPU_WASTE = 256, 8
"""Padding, in tokens, that costs as much as another forward.

A forward reads every weight once. In that time an accelerator multiplies about this many tokens (its operations per
byte of memory bandwidth), a CPU a few: two cores take 4 to 5 times as long for 16 tokens as for one (Qwen2.5).
"""


@dataclass(frozen=True, slots=True)
class ReadSpan:
    """Read range known without a device sync: every row has ``unread`` tokens to read, the last before ``reach``."""

    reach: int
    unread: int


def even_span(gaps: list[int], lengths: list[int]) -> ReadSpan | None:
    """One range for rows with ``gaps`` unread tokens: some are read again. None where those are many, or not there."""
    unread = max(gaps)
    again = unread * len(gaps) - sum(gaps)
    return None if again > WASTE or unread > min(lengths) else ReadSpan(max(lengths), unread)


class ForwardPlan:
    """The next forward: the ``positions`` of its queries, the ``reach`` first slots it reads, and those it writes.

    ``slots`` [r * q] are flat over row and slot; ``rows`` None means all rows.
    """

    positions: AttentionPositions
    reach: int
    slots: Tensor
    rows: Tensor | None
    rounded: bool = False
    """whether ``reach`` may exceed the longest text, as in a recorded forward"""


class SlotLayer(CacheLayerMixin):
    """Keys and values [batch, slots, heads, width] of one layer; padding writes to the last slot."""

    def __init__(self, plan: ForwardPlan, batch: int, capacity: int):
        super().__init__()
        self.plan, self.batch, self.capacity = plan, batch, capacity

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        _, heads, _, width = key_states.shape
        with torch.inference_mode(False):  # a recorder's cache outlives its session
            self.keys = key_states.new_zeros(self.batch, self.capacity + 1, heads, width)
            self.values = value_states.new_zeros(self.batch, self.capacity + 1, heads, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        keys, values = self.stores(key_states, value_states)
        return self._write(keys, key_states), self._write(values, value_states)

    def stores(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values [batch, slots, heads, width]; the states [r, heads, q, width] say of what kind."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self.keys, self.values

    def _write(self, store: Tensor, states: Tensor) -> Tensor:
        slots = self.plan.slots.to(store.device)  # layers may be on devices of their own
        store.flatten(0, 1).index_copy_(0, slots, states.transpose(1, 2).flatten(0, 1))
        return self.seen(store)

    def seen(self, store: Tensor) -> Tensor:
        """The slots of ``store`` that the planned forward reads, [r, heads, reach, width]."""
        plan = self.plan
        seen = store[:, : plan.reach] if plan.rows is None else store[plan.rows.to(store.device), : plan.reach]
        return seen.transpose(1, 2)

    def move(self, old: Tensor, new: Tensor) -> None:
        """Copy the slots ``old`` [n] to the slots ``new`` [n], flat over row and slot."""
        for store in (self.keys.flatten(0, 1), self.values.flatten(0, 1)):
            store.index_copy_(0, new.to(store.device), store[old.to(store.device)])

    def get_seq_length(self, *args) -> int:
        return self.plan.reach - self.plan.positions.queries.shape[1]

    def get_max_length(self) -> int:
        return self.capacity

    get_max_cache_shape = get_max_length

    def get_mask_sizes(self, query_length: int, *args) -> tuple[int, int]:
        return self.plan.reach, 0


class SlotCache(Cache):
    """The layers of one model. To transformers, which expects one offset for all rows, it returns positions by row."""

    def __init__(self, plan: ForwardPlan, layers: list[SlotLayer]):
        super().__init__(layers=layers)
        self.plan = plan

    def get_query_offset(self, *args) -> AttentionPositions:
        return self.plan.positions


class BaseSession:
    """The part of a session that does not depend on the engine: how far each row is read, and the cost so far.

    ``read`` [batch]: tokens of each row in the cache. ``reads``: tokens read by each forward, over all rows.
    ``seconds``: host time inside forwards, of which ``prefill`` read prompts; meaningful on CPU, where forwards are
    synchronous.
    """

    def __init__(self, lm, batch: int):
        self.model, self.name, self.vocab, self.batch = lm.model, lm.name, lm.vocab, batch
        self.shared = self.recorder = None
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
        """Forget the tokens of ``rows`` [r] after the first ``lengths`` [r]."""
        self.read[rows] = torch.minimum(self.read[rows], lengths)

    def share(self, vocab: int, shared: SharedIds | None) -> None:
        """Write and read a text of ``vocab`` ids, some of which the model may lack."""
        self.vocab, self.shared = vocab, shared

    def _shared(self, logits: Tensor) -> Tensor:
        """``logits`` [..., head] of the ids [..., vocab] of the text, -inf where the model lacks one."""
        logits = logits[..., : self.vocab]
        return logits if self.shared is None else self.shared.masked(logits)

    def _readable(self, ids: Tensor) -> Tensor:
        """``ids`` as the model can read them."""
        return ids if self.shared is None else self.shared.readable(ids)

    @property
    def calls(self) -> int:
        """Forwards so far."""
        return len(self.reads)

    @property
    def broken(self) -> Tensor:
        """[1] whether the model has returned NaN: the maximum of all logits is then NaN."""
        return self.greatest.isnan()

    def check(self) -> None:
        """Raise FloatingPointError when the model has returned NaN."""
        if bool(self.broken):
            raise FloatingPointError(
                f"the model {self.name} returned NaN logits; check its weights or use a wider dtype"
            )

    def _count(self, logits: Tensor, began: float, prompt: bool) -> None:
        """Account for a forward that ``began`` at that time and returned ``logits``."""
        torch.maximum(self.greatest, logits.amax(), out=self.greatest)
        seconds = time.perf_counter() - began
        self.seconds += seconds
        self.prefill += seconds if prompt else 0.0


class Session(BaseSession):
    """The cache of one model that torch runs, for all rows of a batch."""

    def __init__(self, lm, batch: int, capacity: int):
        super().__init__(lm, batch)
        self.fused, self.recorder, self.capacity = lm.fused_forward(), None, capacity
        if lm.recorders is not None:
            self.recorder = lm.recorders.lend(batch, capacity, self._new_cache)
        if self.recorder is not None:
            self.capacity = self.recorder.capacity
            weakref.finalize(self, lm.recorders.take_back, self.recorder)
        self.cache = self._new_cache(capacity) if self.recorder is None else self.recorder.cache
        self.plan = self.cache.plan
        self.begins = torch.arange(batch, device=lm.device)[:, None] * (self.capacity + 1)
        lm.model.base_model.warn_if_padding_and_no_attention_mask = _no_warning

    @torch.no_grad()
    def catch_up(
        self,
        ids: Tensor,
        lengths: Tensor,
        rows: Tensor,
        logits_to_keep: int = 1,
        hidden: bool = False,
        tree: TokenTree | None = None,
        span: ReadSpan | None = None,
    ):
        """Read the unread tokens of ``rows`` [r] in ``ids`` [batch, ...] up to ``lengths`` [r], in one forward.

        Returns logits [r, logits_to_keep, vocab] after the last ``logits_to_keep`` tokens, right-aligned: a row with
        fewer unread tokens has only that many valid columns (at least one: the last token is read again if need be).
        With ``hidden`` also the last hidden states [r, logits_to_keep, width]. Tokens after the texts of a ``tree`` are
        read as its nodes, in any number of calls. Rows far behind the others are read in a second forward where that
        saves more padding than that costs. A ``span`` of at least ``logits_to_keep`` tokens avoids a device
        sync.
        """
        start, prompt = None, False
        if span is None:
            start = torch.minimum(self.read[rows], lengths - 1)
            gaps = (lengths - start).clamp(min=logits_to_keep)
            facts = [lengths.max(), gaps.max(), gaps.sum(), start.min(), start.sum(), lengths.sum()]
            reach, longest, wanted, first, read, end = torch.stack(facts).tolist()
            waste = CPU_WASTE if ids.is_cpu else WASTE
            parts = _apart(gaps, waste) if len(rows) * longest - wanted > waste else None
            if parts is not None:
                return self._read_apart(parts, ids, lengths, rows, logits_to_keep, hidden, tree)
            span, new, prompt = ReadSpan(reach, longest), end - read, first == 0
        slots = stored = lengths[:, None] + torch.arange(-span.unread, 0, device=ids.device)
        if start is not None and new < slots.numel():
            stored = torch.where(slots < start[:, None], self.capacity, slots)
            # Padding is at position 0, where attention has a key to see; its output is not used.
            slots = slots.clamp(min=0)
        self.reads.append(slots.numel() if start is None else new)
        self.plan.positions = AttentionPositions(slots) if tree is None else tree.positions(slots, span.reach)
        self._plan(rows, stored, span.reach)
        logits, states = self._forward(self._readable(ids[rows[:, None], slots]), prompt, logits_to_keep, hidden)
        self.read[rows] = lengths
        return (logits, states) if hidden else logits

    def keep_path(self, rows: Tensor, lengths: Tensor, path: Tensor, counts: Tensor) -> None:
        """Append the first ``counts`` [r] nodes of ``path`` [r, k] to texts of ``lengths`` [r]; forget all others."""
        self.read[rows] = lengths + counts
        column = torch.arange(path.shape[1], device=path.device)
        begin = (rows * (self.capacity + 1) + lengths)[:, None]
        old, new = begin + path, begin + column
        if path.is_cpu:  # often nothing has to move; on a device, finding out would make the host wait
            moved = (path != column) & (column < counts[:, None])
            old, new = old[moved], new[moved]
        for layer in self.cache.layers if old.numel() else ():
            layer.move(old.flatten(), new.flatten())

    def check(self) -> None:
        if self.recorder is not None and bool(self.broken):
            self.recorder.broken = True  # even a masked NaN value would spoil the next session's attention
        super().check()

    def _read_apart(self, parts, ids, lengths, rows, logits_to_keep, hidden, tree):
        """``catch_up`` of each of ``parts`` of the rows, with the results in the order of the rows."""
        read = [self.catch_up(ids, lengths[p], rows[p], logits_to_keep, hidden, tree and tree.of(p)) for p in parts]
        back = torch.cat(parts).argsort()
        return tuple(torch.cat(both)[back] for both in zip(*read, strict=True)) if hidden else torch.cat(read)[back]

    def _new_cache(self, capacity: int) -> SlotCache:
        plan, layers = ForwardPlan(), self.model.config.num_hidden_layers
        return SlotCache(plan, [SlotLayer(plan, self.batch, capacity) for _ in range(layers)])

    def _plan(self, rows: Tensor, slots: Tensor, reach: int) -> None:
        self.plan.rows = None if len(rows) == self.batch else rows
        begins = self.begins if self.plan.rows is None else self.begins[rows]
        self.plan.slots, self.plan.reach = (begins + slots).flatten(), reach

    def _forward(self, ids: Tensor, prompt: bool, logits_to_keep: int, hidden: bool) -> tuple[Tensor, Tensor | None]:
        """Logits, cut to the shared vocabulary, and last hidden states of the planned forward; counted and timed."""
        began = time.perf_counter()
        logits, states = self._run(ids, logits_to_keep, hidden)
        logits = self._shared(logits)
        self._count(logits, began, prompt)
        return logits, states

    def _run(self, ids: Tensor, logits_to_keep: int, hidden: bool) -> tuple[Tensor, Tensor | None]:
        # Not a bound method: a recorded forward outlives the session.
        own = partial(_forward, self.model)
        forward = partial(own if self.fused is None else self.fused, self.cache)
        replayed = None if self.recorder is None else self.recorder.run(forward, ids, logits_to_keep, hidden)
        return forward(ids, logits_to_keep, hidden) if replayed is None else replayed


def _no_warning(*args) -> None:
    """In place of transformers' warning, for which GPT-2 reads two ids in every forward: texts have no padding here."""


def _forward(model, cache: SlotCache, ids: Tensor, logits_to_keep: int, hidden: bool) -> tuple[Tensor, Tensor | None]:
    options = {"logits_to_keep": logits_to_keep, "output_hidden_states": hidden, "use_cache": True}
    out = model(input_ids=ids, position_ids=cache.plan.positions.queries, past_key_values=cache, **options)
    return out.logits, out.hidden_states[-1][:, -logits_to_keep:] if hidden else None


def _apart(gaps: Tensor, waste: int) -> tuple[Tensor, Tensor] | None:
    """The two groups of rows, longest first, that need least padding; None if splitting saves at most ``waste``."""
    longest, order = gaps.sort(descending=True)
    saved = (longest[0] - longest[1:]) * torch.arange(len(gaps) - 1, 0, -1, device=gaps.device)
    most, n = torch.stack(saved.max(0)).tolist()
    return (order[: n + 1], order[n + 1 :]) if most > waste else None
