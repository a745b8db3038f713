"""What a decoder's time consists of: the forwards it made, what these cost bare, and what reading weights costs."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from decoding import LM
from decoding.session import Session

clock = time.perf_counter


class Call(NamedTuple):
    """One forward of ``model``: ``rows`` x ``query`` tokens, logits of the last ``keep``, ``context`` cached before."""

    model: str
    rows: int
    query: int
    keep: int
    context: int

    @property
    def shape(self) -> tuple:
        """What its time depends on, but for how long the context is: there it is close to linear."""
        return (*self[:4], self.context == 0)


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
    """What forwards of ``modules`` (by name) cost when nothing is done between them, timed shape by shape.

    Those of ``lms`` are the sessions' own, at their cache; the others plain ones with transformers' cache.
    """

    def __init__(self, modules: dict[str, nn.Module], lms: dict[str, LM]):
        self.modules, self.lms, self.empty = modules, lms, {}

    def seconds(self, calls: dict[str, list[Call]]) -> dict[str, float]:
        """Per method the sum over its calls.

        Each shape is timed at the mean context of the calls of that shape: time is close to linear in the context, so
        the sum over all of them is right.
        """
        contexts = defaultdict(list)
        for call in (call for made in calls.values() for call in made):
            contexts[call.shape].append(call.context)
        cost = {shape: self.one(*shape[:4], round(statistics.mean(some))) for shape, some in contexts.items()}
        return {name: sum(cost[call.shape] for call in made) for name, made in calls.items()}

    @torch.inference_mode()
    def one(self, name: str, rows: int, query: int, keep: int, context: int) -> float:
        """Median seconds of a forward of ``rows`` x ``query`` tokens after ``context`` cached ones."""
        device, times = _device(self.modules[name]), []
        ids = torch.zeros(rows, query, dtype=torch.long, device=device)
        # A long prompt varies little and takes long.
        for _ in range(4 if rows * query <= 64 else 2):
            forward = (self._own if name in self.lms else self._plain)(name, ids, keep, context)
            wait(device)
            began = clock()
            forward()
            wait(device)
            times.append(clock() - began)
        return statistics.median(times[1:])

    def _plain(self, name: str, ids: torch.Tensor, keep: int, context: int) -> Callable:
        options = {"past_key_values": self._cache(name, len(ids), context), "use_cache": True, "logits_to_keep": keep}
        return lambda: self.modules[name](input_ids=ids, **options)

    def _own(self, name: str, ids: torch.Tensor, keep: int, context: int) -> Callable:
        """The forward that a session of the model makes, which has made it once: its cache and its plan are there."""
        rows, length = torch.arange(len(ids), device=ids.device), context + ids.shape[1]
        session = self.lms[name].session(len(ids), length)
        session.read.fill_(context)
        session.catch_up(ids.new_zeros(len(ids), length), torch.full_like(rows, length), rows, keep=keep)
        return lambda: session._run(ids, keep, False)

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
