"""What a decoder's time consists of: the forwards it made, what these cost bare, and what reading weights costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from decoding import LM
from decoding.kv_cache.attention import AttentionPositions
from decoding.kv_cache.session import Session

clock = time.perf_counter


class Call(NamedTuple):
    """One forward of ``model``: ``rows`` x ``query`` tokens, logits of the last ``keep``, ``context`` cached before."""

    model: str
    rows: int
    query: int
    keep: int
    context: int


class Recorder:
    """Notes every forward of ``modules`` (by name) in ``calls``; a few microseconds each, in every method alike.

    Those of ``lms`` are noted where a session makes them, whichever way it takes: around the module, or from a graph.
    """

    def __init__(self, modules: dict[str, nn.Module], lms: dict[str, LM]):
        self.calls: list[Call] = []
        self.names = {id(lm.model): name for name, lm in lms.items()}
        self.plain = Session._run
        Session._run = self._noted()
        self.hooks = [
            module.register_forward_pre_hook(
                lambda _, args, options, name=name: self._note(name, options), with_kwargs=True
            )
            for name, module in modules.items()
            if name not in lms
        ]

    def _noted(self) -> Callable:
        def run(session: Session, ids, keep: int, hidden: bool):
            name, (rows, query) = self.names.get(id(session.model)), ids.shape
            if name is not None:
                self.calls.append(Call(name, rows, query, min(keep, query), session.plan.reach - query))
            return self.plain(session, ids, keep, hidden)

        return run

    def _note(self, name: str, options: dict) -> None:
        rows, query = options["input_ids"].shape
        cache, keep = options.get("past_key_values"), options.get("logits_to_keep", 0)
        context = 0 if cache is None else int(cache.get_seq_length())
        self.calls.append(Call(name, rows, query, keep if 0 < keep < query else query, context))

    def take(self) -> list[Call]:
        """The calls since the last time."""
        taken, self.calls = self.calls, []
        return taken

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()
        Session._run = self.plain


class BareForwards:
    """What forwards of ``modules`` (by name) cost when nothing is done between them.

    Those of ``lms`` are the sessions' own, at their cache; the others plain ones with transformers' cache.
    """

    def __init__(self, modules: dict[str, nn.Module], lms: dict[str, LM]):
        self.modules, self.lms, self.empty = modules, lms, {}

    @torch.inference_mode()
    def seconds(self, calls: Sequence[Call]) -> float:
        """All ``calls`` of a method again, in their order: after a large model a small one finds its weights gone from
        the processor's caches, so either alone in a loop would be faster than it can be in any decoder."""
        prepare = {name: self._preparing(name, calls) for name in {call.model for call in calls}}
        recorded = any(self.lms[name].recorders is not None for name in prepare if name in self.lms)
        for _ in range(1 + recorded):  # first come the graphs
            total = sum(self._timed(prepare[call.model](call), call.model) for call in calls)
        return total

    @torch.inference_mode()
    def one(self, call: Call) -> float:
        """Median seconds of the same forward a few times in a row."""
        forward = self._preparing(call.model, [call])(call)
        return statistics.median([self._timed(forward, call.model) for _ in range(4)][1:])

    def _timed(self, forward: Callable, name: str) -> float:
        device = _device(self.modules[name])
        wait(device)
        began = clock()
        forward()
        wait(device)
        return clock() - began

    def _preparing(self, name: str, calls: Sequence[Call]) -> Callable[[Call], Callable]:
        """What makes a call of ``name``, one of ``calls``, ready to be timed."""
        own = [call for call in calls if call.model == name]
        prepare = self._in_session(name, own) if name in self.lms else self._plain(name)
        prepare(own[0])()  # what is made at the first forward
        return prepare

    def _in_session(self, name: str, calls: Sequence[Call]) -> Callable[[Call], Callable]:
        reach = max(call.context + call.query for call in calls)
        session = self.lms[name].session(max(call.rows for call in calls), reach)

        def prepare(call: Call) -> Callable:
            rows = torch.arange(call.rows, device=session.read.device)
            slots = torch.arange(call.context, call.context + call.query, device=rows.device).expand(call.rows, -1)
            session.plan.positions = AttentionPositions(slots)
            session._plan(rows, slots, call.context + call.query)
            return lambda: session._run(torch.zeros_like(slots), call.keep, False)

        return prepare

    def _plain(self, name: str) -> Callable[[Call], Callable]:
        held = {}

        def prepare(call: Call) -> Callable:
            cache = held.get(call.rows)
            more = -1 if cache is None else cache.get_seq_length() - call.context
            if more < 0:
                cache = self._cache(name, call.rows, call.context)
            elif more > 0:
                cache.crop(-more)
            held.clear()
            held[call.rows] = cache
            ids = torch.zeros(call.rows, call.query, dtype=torch.long, device=_device(self.modules[name]))
            options = {"past_key_values": cache, "use_cache": True, "logits_to_keep": call.keep}
            return lambda: self.modules[name](input_ids=ids, **options)

        return prepare

    def _cache(self, name: str, rows: int, context: int):
        """transformers' cache with ``context`` tokens in it; which ones does not matter to the time."""
        from transformers import DynamicCache

        model = self.modules[name]
        cache = DynamicCache(config=model.config)
        if name not in self.empty:
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=_device(model)), past_key_values=cache)
            self.empty[name] = [(layer.keys[:, :, :0], layer.values[:, :, :0]) for layer in cache.layers]
            cache = DynamicCache(config=model.config)
        for i, pair in enumerate(self.empty[name] if context else ()):
            cache.update(*(t.new_zeros(rows, t.shape[1], context, t.shape[3]) for t in pair), i)
        return cache


def weight_bytes(model: nn.Module) -> int:
    """Bytes that writing one token must read: all weights, of an embedding that is not also the head only a row."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    sizes = {p.data_ptr(): p.numel() * p.element_size() for p in model.parameters()}
    if embedding.data_ptr() != head.data_ptr():
        sizes.pop(embedding.data_ptr())
    return sum(sizes.values())


def copy_bandwidth(device: torch.device, size: int = 2**28, repeats: int = 7) -> float:
    """Bytes per second of ``torch.Tensor.copy_``, read and written counted: the median of a few of ``size`` bytes."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target, times = torch.empty_like(source), []
    for _ in range(repeats + 1):
        wait(device)
        began = clock()
        target.copy_(source)
        wait(device)
        times.append(clock() - began)
    return 2 * size / statistics.median(times[1:])


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device(model: nn.Module) -> torch.device:
    return model.get_input_embeddings().weight.device
