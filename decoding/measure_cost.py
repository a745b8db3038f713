"""The command that measures what the forwards of a pair cost here, and says from when on drafting is worth it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro
from tyro.conf import arg

from decoding.options import Backend, Model, use

RATES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
DRAFTS = (1, 2, 3, 4, 6, 8)


@dataclass
class MeasureCost:
    """Measure what the small and the large model cost on this machine, and what drafting is then worth.

    Prints milliseconds by tokens read, and the speedup over the large model alone by draft length and by how often a
    drafted token is kept. The measurement is stored in the user's cache folder, where ``generate`` finds it and warns
    of a draft length that loses. Nothing else should run meanwhile.
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
    threads: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: torch chooses)")] = None
    """CPU threads"""


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 measured, 2 bad input (one sentence on standard error), 130 interrupted."""
    options = tyro.cli(MeasureCost, args=argv, prog="python -m decoding.measure_cost")
    try:
        models = load(options)
        from decoding.cost import measure
        from decoding.cost_file import store

        tables = measure(models)
        path = store(models, tables)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    show(tables)
    print(f"stored in {path}")
    return 0


def load(options: MeasureCost) -> list:
    use(options.device, options.threads)
    from decoding.lm import check_compatible
    from decoding.pairs import load_model

    sources = {"small": options.small, "large": options.large}
    how = options.device, options.dtype, options.backend
    models = [load_model(name, source, *how) for name, source in sources.items()]
    check_compatible(models)
    return models


def show(tables: list[dict[int, float]]) -> None:
    from decoding.prospect import speedup

    print("tokens read" + "".join(f"{n:>9}" for n in tables[0]))
    for name, table in zip(("small", "large"), tables, strict=True):
        print(f"{name:>8} ms" + "".join(f"{1e3 * s:>9.2f}" for s in table.values()))
    print("\nspeedup by draft length" + "".join(f"{n:>7}" for n in DRAFTS))
    for rate in RATES:
        print(f"{rate:>11.0%} are kept" + "".join(f"{speedup(*tables, n, [rate]):>7.2f}" for n in DRAFTS))
    print()


if __name__ == "__main__":
    sys.exit(main())
