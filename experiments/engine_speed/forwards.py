"""The parts of a decoder's time: the forwards it made, their bare cost, and the cost of reading weights."""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from transformers import DynamicCache

from decoding import LM
from decoding.kernels.packed_products import PackedLinear
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
    """Notes every forward of ``modules`` (by name) in ``calls``, at a few microseconds each in every method.

    Forwards of ``lms`` are noted in their session, since a session may bypass the module or replay a graph.
    """

    def __init__(self, modules: dict[str, nn.Module], lms: dict[str, LM]):
        self.calls: list[Call] = []
        self.plain, names = Session._run, {id(lm.model): name for name, lm in lms.items()}

        def run(session: Session, ids, keep: int, hidden: bool):
            name, (rows, query) = names.get(id(session.model)), ids.shape
            if name is not None:
                self.calls.append(Call(name, rows, query, min(keep, query), session.plan.reach - query))
            return self.plain(session, ids, keep, hidden)

        Session._run = run
        self.hooks = [
            module.register_forward_pre_hook(partial(self._note, name), with_kwargs=True)
            for name, module in modules.items()
            if name not in lms
        ]

    def _note(self, name: str, module: nn.Module, args: tuple, options: dict) -> None:
        rows, query = options["input_ids"].shape
        cache, keep = options.get("past_key_values"), options.get("logits_to_keep", 0)
        context = 0 if cache is None else int(cache.get_seq_length())
        self.calls.append(Call(name, rows, query, keep if 0 < keep < query else query, context))

    def take(self) -> list[Call]:
        """The calls since the last ``take``."""
        taken, self.calls = self.calls, []
        return taken

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()
        Session._run = self.plain


class BareForwards:
    """Times forwards of ``modules`` (by name) with nothing done between them.

    Forwards of ``lms`` go through a session and its cache, all others through transformers' cache.
    """

    def __init__(self, modules: dict[str, nn.Module], lms: dict[str, LM]):
        self.modules, self.lms = modules, lms

    @torch.inference_mode()
    def seconds(self, calls: Sequence[Call]) -> float:
        """Seconds of all ``calls`` of a method, repeated in their order.

        The order matters: after a large model's forward a small model's weights are gone from the processor's caches,
        so a loop over either alone would be faster than any decoder can be.
        """
        prepare = {name: self._preparing(name, calls) for name in {call.model for call in calls}}
        recorded = any(self.lms[name].recorders is not None for name in prepare if name in self.lms)
        for _ in range(1 + recorded):  # the first pass records the graphs
            total = sum(self._timed(prepare[call.model](call), call.model) for call in calls)
        return total

    @torch.inference_mode()
    def one(self, call: Call) -> float:
        """Median seconds of one forward, a few times in a row."""
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
        """A function that makes a call of ``name``, one of ``calls``, ready to be timed."""
        own = [call for call in calls if call.model == name]
        prepare = self._in_session(name, own) if name in self.lms else self._plain(name)
        prepare(own[0])()  # the first forward allocates
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
        model, cache, rows = self.modules[name], None, 0

        def prepare(call: Call) -> Callable:
            nonlocal cache, rows
            zeros = lambda tokens: torch.zeros(call.rows, tokens, dtype=torch.long, device=_device(model))  # noqa: E731
            if call.rows != rows or cache.get_seq_length() < call.context:
                cache, rows = DynamicCache(config=model.config), call.rows
                if call.context:
                    model(input_ids=zeros(call.context), past_key_values=cache, logits_to_keep=1)
            elif more := cache.get_seq_length() - call.context:
                cache.crop(-more)
            ids, options = zeros(call.query), {"past_key_values": cache, "use_cache": True}
            return lambda: model(input_ids=ids, logits_to_keep=call.keep, **options)

        return prepare


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def weight_bytes(model: nn.Module) -> int:
    """Bytes read to write one token: all weights, but only one row of an embedding that is not also the head."""
    found = {}
    for module in model.modules():
        if isinstance(module, PackedLinear) and "weight" not in module._parameters:
            found[id(module)] = module.in_features * module.out_features * module.weight_dtype.itemsize
        integers = module.buffers(False) if isinstance(module, nn.Linear | nn.Embedding) else ()
        for tensor in (*module.parameters(False), *integers):
            found[tensor.data_ptr()] = tensor.nbytes
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    read_by_rows = {t.data_ptr() for t in _tensors(embedding)} - {t.data_ptr() for t in _tensors(head)}
    return sum(size for key, size in found.items() if key not in read_by_rows)


def copy_bandwidth(device: torch.device, size: int = 2**28, repeats: int = 7) -> float:
    """Bytes per second, read and written, of ``torch.Tensor.copy_``: the median of a few copies of ``size`` bytes."""
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
    """Block until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device(model: nn.Module) -> torch.device:
    return model.get_input_embeddings().weight.device
