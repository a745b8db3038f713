"""Launches, kernels and waits of a token, counted on the simulated device and the tape, before and after recording.

    python tests/support/launch_counts.py            # the table of experiments/README.md

With Triton installed and ``TRITON_INTERPRET=1`` its kernels take part, as they do on a GPU.
"""

from __future__ import annotations

import copy
import sys
from contextlib import ExitStack
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from unittest.mock import patch

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2])]

import numpy as np
import simulated_device
import torch
from simulated_device import DEVICE, Elsewhere, There, move
from tape import Tape, is_view
from tiny_models import tiny

from decoding import LM, MTAD, Autoregressive, Backoff, Speculative, generate
from decoding.kernels import cuda_graphs
from decoding.kv_cache.session import Session
from decoding.state.host_reads import LateRead
from policies import FEATURES, MLP, Logistic, Rule

ALL = tuple(name for name, feature in FEATURES.items() if not feature.needs_target and name != "uniform")
SHORT, LONG = 15, 35
"""lengths of the texts whose difference is counted: within 128 slots, and whole rounds of 4 and 5 tokens apart"""


@dataclass
class Counts:
    """Of a token: what the host launches, the kernels besides those of forwards, waits of the host, late copies to it.

    A recording is one launch, however many kernels it has; a late copy is a launch and no kernel.
    """

    launches: float = 0
    kernels: float = 0
    waits: float = 0
    copies: float = 0

    def minus(self, other: Counts) -> Counts:
        return Counts(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def over(self, n: int) -> Counts:
        return Counts(*(value / n for value in astuple(self)))


class Watch:
    """Counts what happens on the simulated device while it is active; a copy to the host is no wait by itself."""

    def __init__(self):
        self.counts, self.forward, self.apart, self.beside = Counts(), 0, False, {}

    def __enter__(self):
        self.stack = ExitStack()
        swap = lambda owner, name, new: self.stack.enter_context(patch.object(owner, name, new))  # noqa: E731
        swap(simulated_device, "dispatch", self._dispatched(simulated_device.dispatch))
        swap(Session, "catch_up", self._in_forward(Session.catch_up))
        swap(Tape, "record", self._recorded(Tape.record))
        swap(Tape, "replay", self._replay(Tape.replay))
        swap(LateRead, "__init__", self._copied(LateRead.__init__))
        Elsewhere.waits = 0
        return self

    def __exit__(self, *args):
        self.stack.close()

    def now(self) -> Counts:
        return Counts(self.counts.launches, self.counts.kernels, Elsewhere.waits, self.counts.copies)

    def _dispatched(self, dispatch):
        def counted(func, args, kwargs):
            out = dispatch(func, args, kwargs)
            there = any(isinstance(x, There) for x in _leaves((args, kwargs, out)))
            if there and not self.apart and not is_view(func):
                self.counts.launches += 1
                self.counts.kernels += not self.forward
            return out

        return counted

    def _in_forward(self, catch_up):
        def inside(*args, **options):
            self.forward += 1
            try:
                return catch_up(*args, **options)
            finally:
                self.forward -= 1

        return inside

    def _recorded(self, record):
        def counted(tape, func, args, kwargs):
            before = len(tape.lines)
            out = record(tape, func, args, kwargs)
            if len(tape.lines) > before and not is_view(func) and not self.forward:
                self.beside[id(tape)] = self.beside.get(id(tape), 0) + 1
            return out

        return counted

    def _replay(self, replay):
        def counted(tape):
            self._one_launch(lambda: replay(tape))
            self.counts.kernels += self.beside.get(id(tape), 0)

        return counted

    def _copied(self, begin):
        def counted(read, values):
            self._one_launch(lambda: begin(read, values))
            self.counts.copies += 1

        return counted

    def _one_launch(self, run):
        """Count whatever ``run`` does on the device as one launch and no kernel."""
        self.apart = True
        run()
        self.apart = False
        self.counts.launches += 1


def _leaves(tree) -> list:
    return simulated_device.tree_flatten(tree)[0]


def fitted(kind, names=ALL):
    rng, classes = np.random.default_rng(0), torch.zeros(37, dtype=torch.uint8)
    return kind(names, classes=classes).fit(rng.normal(size=(200, len(names))), rng.random(200)).with_threshold(np.inf)


def decoders(small: LM, large: LM) -> dict:
    """By a row's name. Policies that never say True, and one that always does, show what a decision and a call cost."""
    never = {
        "a rule": Rule("entropy", np.inf),
        "logistic, 17 features": fitted(Logistic),
        "MLP, 17 features": fitted(MLP),
    }
    never = {name: move(copy.deepcopy(policy)) for name, policy in never.items()}
    return (
        {"autoregressive": lambda: Autoregressive(small)}
        | {f"hand-off, {name}": lambda policy=policy: Backoff([small, large], policy) for name, policy in never.items()}
        | {
            "hand-off, every token escalated": lambda: Backoff([small, large], move(Rule("entropy", -np.inf))),
            "speculative, 4: a round": lambda: Speculative([small, large], 4),
            "speculative, 4, stop by logistic: a round": lambda: Speculative(
                [small, large], 4, stop=never["logistic, 17 features"]
            ),
            "MTAD, 3 beams of 3: a round": lambda: MTAD([small, large], beams=3, length=3),
        }
    )


def counted(make, rounds_of=None) -> Counts:
    """The counts of a token, or of a forward of the model ``rounds_of``: those of a long text less those of a short."""
    ids, found = torch.tensor([[3, 9, 4, 11]]).to(DEVICE), {}
    with Watch() as watch:
        for tokens in (LONG, SHORT, LONG):  # the first one records
            before = watch.now()
            result = generate(make(), ids, max_new_tokens=tokens, eos_token_id=(), seed=1)
            n = tokens if rounds_of is None else result.counts["calls"][rounds_of]
            found[tokens] = watch.now().minus(before), n
    (long, most), (short, least) = found[LONG], found[SHORT]
    return long.minus(short).over(most - least)


def table(names=None, kernels=False) -> dict[str, tuple[Counts, Counts]]:
    """Counts by decoder: without recordings, by a host that waits for each token; and with both."""
    found = {}
    with ExitStack() as stack:
        swap = lambda where, new: stack.enter_context(patch(where, new))  # noqa: E731
        swap("torch.inference_mode", lambda mode=True: torch.no_grad())
        swap("decoding.models.lm.family", lambda model: True)
        swap("decoding.models.lm.recordable", lambda model: True)
        stack.enter_context(patch.object(cuda_graphs, "CudaGraph", Tape))
        large = tiny(layers=2, seed=1)
        stack.enter_context(Elsewhere())
        for after in (False, True):
            pair = [LM(move(copy.deepcopy(large.model)), graphs=after) for _ in range(2)]
            with ExitStack() as way:
                if not after:
                    way.enter_context(patch("decoding.state.generation_state.host_waits", lambda device: False))
                    way.enter_context(patch("decoding.drafting.draft_model.host_waits", lambda device: False))
                if after and kernels:
                    from decoding.kernels.commit import commit

                    way.enter_context(patch("policies.features.device_path.on_gpu", lambda tensor: True))
                    way.enter_context(patch("decoding.state.ahead.commit_kernel", lambda device: commit))
                for name, make in decoders(*pair).items():
                    if names is None or name in names:
                        counts = counted(make, 1 if name.endswith("a round") else None)
                        found[name] = (*found.get(name, ()), counts)
    return found


def main() -> None:
    try:
        import triton  # noqa: F401

        kernels = True
    except ImportError:
        kernels = False
    found = table()
    fast = table([name for name in found if "a round" not in name], kernels=True) if kernels else {}
    heads = [field.name for field in fields(Counts)]
    print("| | " + " | ".join(heads) + " |")
    for name, (before, after) in found.items():
        last = fast.get(name, (None, None))[1]
        cells = []
        for head in heads:
            values = [getattr(before, head), getattr(after, head), *([getattr(last, head)] if last else [])]
            cells.append(" → ".join(f"{value:.3g}" for value in values))
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
