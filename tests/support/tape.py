"""A stand-in for CUDA graphs that freezes Python, as a graph does: it replays operations on the recorded tensors.

``Tape`` takes the place of ``cuda_graphs.CudaGraph``. While it records, what makes a host wait is refused, and so is
what moves between host and device. As after a capture, nothing has been computed then: tensors that were written have
their old values, and new ones hold garbage. Memory pools, kernels and streams are not simulated.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import ClassVar
from unittest.mock import patch

import torch
from simulated_device import MOVES, Elsewhere, There, dispatch, waits
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

WARM = 3  # runs before a capture, as ``CudaGraph`` makes them
WHOLE = ("scaled_dot_product_attention",)  # not taken apart: its kernels depend on the device


class Tape(TorchDispatchMode):
    """Records ``run`` once; ``replay`` runs its operations again, into the same ``outputs``."""

    made: ClassVar[list[Tape]] = []

    def __init__(self, run):
        super().__init__()
        self.lines, self.saved, self.fresh = [], {}, {}
        for _ in range(WARM):
            run()
        with capturing(self.record), self:
            self.outputs = run()
        for tensor, value in self.saved.values():
            tensor.copy_(value)
        for tensor in self.fresh.values():
            tensor.fill_(torch.nan if tensor.is_floating_point() else 1)
        Tape.made.append(self)

    @property
    def launches(self) -> int:
        """Operations that are no views: about as many kernels."""
        return sum(not is_view(func) for func, *_ in self.lines)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name not in WHOLE and func._can_decompose():  # operations arrive whole in inference mode
            with self:
                taken_apart = func.decompose(*args, **kwargs)
            if taken_apart is not NotImplemented:
                return taken_apart
        if waits(func, args, kwargs):
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        return self.record(func, args, kwargs)

    def record(self, func, args, kwargs):
        if not is_move(func):
            args, kwargs = tree_map(frozen, args), tree_map(frozen, kwargs)
        for tensor in written(func, args, kwargs):
            if storage(tensor) not in self.fresh and storage(tensor) not in self.saved:
                self.saved[storage(tensor)] = whole(tensor), whole(tensor).clone()
        out = func(*args, **kwargs) if hasattr(func, "_schema") else dispatch(func, args, kwargs)
        read, made = tensors((args, kwargs)), tensors(out)
        if Elsewhere.active and not any(isinstance(x, There) for x in read + made):
            return out  # the host's own work, which no graph repeats
        self.lines.append((func, args, kwargs, out))
        known = {storage(x) for x in read}
        self.fresh |= {storage(x): x for x in made if storage(x) not in known}
        return out

    def replay(self) -> None:
        for func, args, kwargs, out in self.lines:
            again = func(*args, **kwargs)
            for old, new in zip(tree_flatten(out)[0], tree_flatten(again)[0], strict=True):
                if isinstance(old, torch.Tensor) and storage(old) != storage(new):
                    assert old.shape == new.shape, f"{func} has another shape when replayed"
                    old.copy_(new)


@contextmanager
def capturing(record):
    """As torch answers while it captures; the reads that pass no dispatcher are refused."""

    def refused(tensor, *args, **options):
        raise RuntimeError("operation not permitted when stream is capturing: a read by the host")

    with ExitStack() as stack:
        stack.enter_context(patch.object(torch.cuda, "is_current_stream_capturing", lambda: True))
        stack.enter_context(patch.object(There, "record", staticmethod(record)))
        for kind in (torch.Tensor, There):
            stack.enter_context(patch.multiple(kind, tolist=refused, numpy=refused))
        yield


def frozen(x):
    """A number that the host holds in a tensor is read when a graph is recorded, never again."""
    return x.clone() if Elsewhere.active and isinstance(x, torch.Tensor) and not isinstance(x, There) else x


def tensors(tree) -> list[torch.Tensor]:
    return [x for x in tree_flatten(tree)[0] if isinstance(x, torch.Tensor)]


def inner(x: torch.Tensor) -> torch.Tensor:
    return x.data_here if isinstance(x, There) else x


def storage(x: torch.Tensor) -> int:
    own = inner(x)
    return (0 if own.is_mkldnn else own.untyped_storage().data_ptr()) or id(own)


def whole(x: torch.Tensor) -> torch.Tensor:
    """All of the memory that the tensor ``x`` is part of."""
    own = inner(x)
    return torch.as_strided(own.detach(), (own.untyped_storage().nbytes() // own.element_size(),), (1,), 0)


def written(func, args, kwargs) -> list[torch.Tensor]:
    """The arguments that an operation writes to."""
    found = []
    for place, argument in enumerate(func._schema.arguments if hasattr(func, "_schema") else ()):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            found += tensors(value)
    return found


def is_move(func) -> bool:
    return getattr(func, "overloadpacket", func).__name__ in MOVES


def is_view(func) -> bool:
    """Whether an operation only looks at memory in another way."""
    returns = func._schema.returns if hasattr(func, "_schema") else ()
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
