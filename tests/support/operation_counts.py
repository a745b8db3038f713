"""What decoding asks of torch besides the forwards: operations, and moments at which the host waits for a value."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from decoding import generation
from decoding.kv_cache.session import Session

READS = ("item", "is_nonzero", "_local_scalar_dense", "nonzero", "masked_select")


class Operations(TorchDispatchMode):
    """Counts operations by name, views included, and those of which the host must wait for a value."""

    def __init__(self):
        super().__init__()
        self.calls, self.reads, self.paused = Counter(), 0, False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not self.paused:
            name = func.overloadpacket.__name__
            self.calls[name] += 1
            self.reads += name in READS or (name in ("index", "index_put_") and _masked(args[1]))
        return func(*args, **({} if kwargs is None else kwargs))


def _masked(indices) -> bool:
    """Whether an index is a mask: how many True it has decides the size of the result."""
    return any(index is not None and index.dtype == torch.bool for index in indices)


@dataclass
class Counted:
    result: generation.Result
    operations: int
    reads: int
    rounds: int


def counted(monkeypatch, decoder, *args, **options) -> Counted:
    """``generate`` with what it asks for outside of forwards, from its second round on: the first reads the prompt."""
    operations, rounds = Operations(), []
    forward, tolist, commits = Session._run, torch.Tensor.tolist, generation.commits

    def hidden(session, *args):
        paused, operations.paused = operations.paused, True
        try:
            return forward(session, *args)
        finally:
            operations.paused = paused

    def read(tensor):
        operations.reads += not operations.paused
        return tolist(tensor)

    def watched(*args):
        writing = commits(*args)
        operations.paused = True
        with operations:
            for commit in writing:
                rounds.append(commit)
                operations.paused = False
                yield commit
        operations.paused = True

    with monkeypatch.context() as patch:
        patch.setattr(Session, "_run", hidden)
        patch.setattr(torch.Tensor, "tolist", read)
        patch.setattr(generation, "commits", watched)
        result = generation.generate(decoder, *args, **options)
    return Counted(result, sum(operations.calls.values()), operations.reads, len(rounds) - 1)
