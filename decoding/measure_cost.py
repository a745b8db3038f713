"""The command that measures what a pair costs on this machine and predicts the speedup of drafting."""

from __future__ import annotations

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import arg

from decoding.cli.dtypes import DtypeOptions, Dtypes
from decoding.cli.ending import ending, mendable
from decoding.cli.generation_config import IgnoredSettings, check_ignored, without
from decoding.cli.numbers import check_numbers
from decoding.cli.options import Backend, Model, use
from decoding.cli.terminal import visible

if TYPE_CHECKING:
    from decoding.cost.costs import ModelCosts

RATES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
DRAFTS = (1, 2, 3, 4, 6, 8)


@dataclass
class MeasureCost:
    """Measure what the small and the large model cost on this machine, and predict the speedup of drafting.

    Prints milliseconds of a forward by tokens read, what a longer cache adds, and the work outside of forwards; then
    the speedup over the large model alone by draft length and acceptance rate. The costs are stored in the user's cache
    folder, where ``generate`` finds them and warns of a draft length that loses. Nothing else should run meanwhile.
    """

    small: Model = None
    """the cheap model (default: the drafter of this package)"""
    large: Model = None
    """the good model, of the same tokenizer (default: SmolLM2-135M-Instruct)"""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps ..."""
    backend: Backend = "torch"
    """torch, or llama.cpp, which runs .gguf files as they are"""
    kept: tuple[float, ...] = ()
    """acceptance rates of your own, one for each place in the draft (the last for all that follow): how often its token
    is accepted if all before it are; predicts tokens per second by draft length"""
    context: int = 128
    """cached tokens, for these predictions"""
    threads: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: torch chooses)")] = None
    """CPU threads"""
    graphs: bool = True
    """on CUDA, time recorded forwards, as decoding makes them"""
    ignore_generation_config: IgnoredSettings = ""
    dtypes: Dtypes = field(default_factory=DtypeOptions)


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 measured, 2 bad input (one sentence on standard error), 130 interrupted."""
    options = tyro.cli(MeasureCost, args=argv, prog="python -m decoding.measure_cost")
    return ending("error", lambda: measure(options), mendable)


def measure(options: MeasureCost) -> int:
    """Measure, show, store; what was measured for minutes is shown even where it cannot be stored."""
    check(options)
    models = load(options)
    from decoding.cost.cache import store
    from decoding.cost.overhead import measure_costs

    costs = measure_costs(models)
    show(costs, options)
    try:
        print(f"stored in {store(models, costs)}")
    except OSError as error:
        print(f"not stored, so generate will not warn of this pair: {visible(str(error))}")
    return 0


def check(options: MeasureCost) -> None:
    """ValueError, one sentence, for what cannot be predicted."""
    check_numbers(options)
    options.dtypes.check()
    check_ignored(options.ignore_generation_config)
    if not all(0 <= share <= 1 for share in options.kept):
        raise ValueError(f"--kept takes rates from 0 to 1, not {' '.join(map(str, options.kept))}")
    if options.context < 1:
        raise ValueError(f"--context must be at least 1, not {options.context}")


def load(options: MeasureCost) -> list:
    use(options.device, options.threads)
    from decoding.models.defaults import load_model
    from decoding.models.settings import check_settings
    from decoding.models.vocabulary import check_compatible

    sources = {"small": options.small, "large": options.large}
    models = [
        load_model(name, source, options.device, options.dtypes.of(name), options.backend, options.graphs)
        for name, source in sources.items()
    ]
    check_compatible(models)
    without(models, options.ignore_generation_config)
    check_settings(models[-1])
    return models


def show(costs: ModelCosts, options: MeasureCost) -> None:
    from decoding.cost.speedup import speedup, token_seconds

    print("  tokens" + "".join(f"{n:>7}" for n in costs.small))
    for name, table in zip(("small", "large"), costs.tables, strict=True):
        print(f"{name} ms" + "".join(f"{1e3 * s:>7.4g}" for s in table.values()))
    print(f"medians, known within {costs.precision:.1%}")
    small, large = costs.cached
    print(f"1,000 more cached tokens, ms: {1e6 * small:+.2f} small, {1e6 * large:+.2f} large")
    outside = {
        "token of the large model alone": costs.token_overhead,
        "round of drafting": costs.round_overhead,
        "drafted token": costs.draft_overhead,
    }
    print("outside forward passes, ms:")
    for what, seconds in outside.items():
        print(f"{1e3 * seconds:>11.2f} per {what}")
    print("\nspeedup by draft length" + "".join(f"{n:>7}" for n in DRAFTS))
    for rate in RATES:
        print(f"{rate:>14.0%} accepted" + "".join(f"{speedup(costs, n, [rate]):>7.2f}" for n in DRAFTS))
    if options.kept:
        alone = 1 / token_seconds(costs, options.context)
        speeds = (alone * speedup(costs, n, options.kept, options.context) for n in DRAFTS)
        print(f"{'tokens per second':>23}" + "".join(f"{speed:>7.1f}" for speed in speeds) + f", alone {alone:.1f}")
    print()


if __name__ == "__main__":
    sys.exit(main())
