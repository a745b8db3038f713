"""The command that measures what a pair costs here, and says from when on drafting is worth it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import arg

from decoding.cli.options import Backend, Model, use

if TYPE_CHECKING:
    from decoding.cost.timing import PairCosts

RATES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
DRAFTS = (1, 2, 3, 4, 6, 8)


@dataclass
class MeasureCost:
    """Measure what the small and the large model cost on this machine, and what drafting is then worth.

    Prints milliseconds by tokens read, what a longer cache adds and what is done beside the forwards, and the speedup
    over the large model alone by draft length and by how often a drafted token is kept. The measurement is stored in
    the user's cache folder, where ``generate`` finds it and warns of a draft length that loses. Nothing else should run
    meanwhile.
    """

    small: Model = None
    """the cheap model (default: the drafter of this package)"""
    large: Model = None
    """the good model, of the same tokenizer (default: SmolLM2-135M-Instruct)"""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps ..."""
    dtype: str = "float32"
    """of the weights in torch: float32, bfloat16 or float16"""
    backend: Backend = "torch"
    """torch, or llama.cpp, which runs .gguf files as they are"""
    kept: tuple[float, ...] = ()
    """shares of your own, one a place of the draft (the last for all that follow): how often its token is kept if all
    before it are; predicts tokens a second by draft length"""
    context: int = 128
    """tokens that are cached, for these predictions"""
    threads: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: torch chooses)")] = None
    """CPU threads"""


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 measured, 2 bad input (one sentence on standard error), 130 interrupted."""
    options = tyro.cli(MeasureCost, args=argv, prog="python -m decoding.measure_cost")
    try:
        check(options)
        models = load(options)
        from decoding.cost.cache import store
        from decoding.cost.pair import measure_costs

        costs = measure_costs(models)
        path = store(models, costs)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    show(costs, options)
    print(f"stored in {path}")
    return 0


def check(options: MeasureCost) -> None:
    """ValueError, one sentence, about what cannot be predicted."""
    if not all(0 <= share <= 1 for share in options.kept):
        raise ValueError(f"--kept are shares of 0 to 1, not {' '.join(map(str, options.kept))}")
    if options.context < 1:
        raise ValueError(f"--context must be at least 1, not {options.context}")


def load(options: MeasureCost) -> list:
    use(options.device, options.threads)
    from decoding.models.defaults import load_model
    from decoding.models.lm import check_compatible

    sources = {"small": options.small, "large": options.large}
    how = options.device, options.dtype, options.backend
    models = [load_model(name, source, *how) for name, source in sources.items()]
    check_compatible(models)
    return models


def show(costs: PairCosts, options: MeasureCost) -> None:
    from decoding.cost.speedup import alone, speedup

    print("tokens read" + "".join(f"{n:>9}" for n in costs.forwards[0]) + "   1,000 more cached")
    for name, table, cached in zip(("small", "large"), costs.forwards, costs.cached, strict=True):
        print(f"{name:>8} ms" + "".join(f"{1e3 * s:>9.2f}" for s in table.values()) + f"{1e6 * cached:>+9.2f}")
    beside = {"token alone": costs.alone, "round": costs.round, "drafted token": costs.drafted}
    print(f"beside forwards, ms: {', '.join(f'{1e3 * s:.2f} a {what}' for what, s in beside.items())}")
    print("\nspeedup by draft length" + "".join(f"{n:>7}" for n in DRAFTS))
    for rate in RATES:
        print(f"{rate:>14.0%} are kept" + "".join(f"{speedup(costs, n, [rate]):>7.2f}" for n in DRAFTS))
    if options.kept:
        most = 1 / alone(costs, options.context)
        speeds = (most * speedup(costs, n, options.kept, options.context) for n in DRAFTS)
        print(f"{'tokens a second':>23}" + "".join(f"{speed:>7.1f}" for speed in speeds) + f", alone {most:.1f}")
    print()


if __name__ == "__main__":
    sys.exit(main())
