"""The tables of the MTAD paper (Qin et al. 2407.09722) at the size that is reachable here, with its missing controls.

    python experiments/mtad.py --table main                 # everything at one draft length
    python experiments/mtad.py --table tau --limit 24       # gamma, beta, tau: one setting varied, a line plot

Main compares MTAD and MMTAD with what its reviewers asked for, all at the same draft length: exact speculative decoding
(also shorter), block verification, MTAD's rule without beams, a fixed ratio per token that asks as much of a whole
block (tau ** (1 / length)), typical acceptance, BiLD, fuzzy speculative decoding, and the large model alone, greedy,
drawing and with beam search. How many draft tokens the large model reads per call is a column: a tree reads more.

A sentence per claim follows the table: who is faster than whom, and what it costs, with 95 % intervals over prompts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import tyro

from experiments.frontier import Setup, run
from experiments.methods import SUFFIX, parse
from train.command import InputError, attempt

if TYPE_CHECKING:
    from experiments.summary import Measured

LENGTHS, BEAMS, TAUS = (1, 2, 3, 4, 6, 8), (1, 2, 4, 8), (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass
class Tables(Setup):
    """The MTAD paper's tables, and the controls that its reviewers missed."""

    table: Literal["main", "gamma", "beta", "tau"] = "main"
    """all methods, or one setting varied: draft length, beams, threshold"""
    length: int = 4
    beams: int = 4
    tau: float = 0.5
    drawing: bool = False
    """vary the setting with the paper's filters (T=1, top-k 10, top-p 0.9), not greedily; main has both"""
    limit: int | None = None
    """prompts whose answers are judged (default: 100, or 40 where a setting is varied)"""
    timed: int | None = None
    """of these, how many are timed one by one (default: 25, or 12); 0: time is priced from calls"""
    name: str | None = None
    """name of the run (default: mtad-TABLE)"""


@dataclass(frozen=True)
class Claim:
    """``method`` beside the fastest of ``others``, who are ``what``."""

    method: str
    others: tuple[str, ...]
    what: str


@dataclass(frozen=True)
class Preset:
    """The methods of a table, what is claimed of them, and the lines of its plot: series of (setting, method)."""

    methods: tuple[str, ...]
    claims: tuple[Claim, ...]
    lines: dict[str, list[tuple[float, str]]]


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when it is done, 2 after one sentence about what was wrong with the input."""
    config = with_defaults(tyro.cli(Tables, args=argv, description=__doc__))
    return attempt("mtad", lambda: tabulate(config), config.output / config.name)


def with_defaults(config: Tables) -> Tables:
    """What was not given: fewer prompts where a setting is varied."""
    few = config.table != "main"
    found = {"limit": 40 if few else 100, "timed": 12 if few else 25, "name": f"mtad-{config.table}"}
    return replace(config, **{key: value for key, value in found.items() if getattr(config, key) is None})


def tabulate(config: Tables) -> dict:
    """Measure the methods of the table, add the claims to result.json and print them."""
    from rich.console import Console

    from experiments.plots import draw_lines
    from train import atomic

    for key, least in {"length": 1, "beams": 1}.items():
        if getattr(config, key) < least:
            raise InputError(f"--{key} must be at least {least}, not {getattr(config, key)}")
    if not 0 < config.tau < float("inf"):
        raise InputError(f"--tau must be over 0 and finite, not {config.tau}")
    preset = PRESETS[config.table](config)
    result, measured = run(config, preset.methods)
    result |= {"table": config.table, "claims": [judged(measured, claim) for claim in preset.claims]}
    folder, console = config.output / config.name, Console(highlight=False)
    atomic.write_json(folder / "result.json", result)
    if preset.lines:
        rows = {row["key"]: row for row in result["methods"]}
        lines = {name: [(x, rows[key_of(text)]) for x, text in line] for name, line in preset.lines.items()}
        draw_lines(result, lines, AXES[config.table], folder / f"{config.table}.png")
        console.print(f"wrote {folder}/{config.table}.png")
    for claim in result["claims"]:
        console.print(claim["sentence"], soft_wrap=True)
    return result


def key_of(text: str) -> str:
    return str(parse(text))


def judged(measured: Measured, claim: Claim) -> dict:
    """The claim in numbers and as a sentence; the fastest of several others is chosen by its measured speed."""
    from experiments.summary import difference, ratio, ratio_interval

    key = key_of(claim.method)
    best = max(claim.others, key=lambda text: ratio(measured, key_of(text), key))
    other = key_of(best)
    faster, (low, high) = ratio(measured, key, other), ratio_interval(measured, key, other)
    more, (least, most) = difference(measured, key, other)
    speed = "faster" if low > 1 else "slower" if high < 1 else "not clearly faster or slower"
    loss = "loses more" if least > 0 else "loses less" if most < 0 else "loses no clearly different amount"
    return {
        "method": key,
        "over": other,
        "speed_ratio": faster,
        "speed_interval": [low, high],
        "loss_difference": more,
        "loss_interval": [least, most],
        "sentence": f"{claim.method} over {claim.what} ({best}): {faster:.2f}x [{low:.2f}, {high:.2f}], {speed}; "
        f"guarded regret {more:+.3f} [{least:+.3f}, {most:+.3f}], {loss}.",
    }


def _main(config: Tables) -> Preset:
    joint = f"beams={config.beams},length={config.length},tau={config.tau:g}"
    alone, block = f"length={config.length},tau={config.tau:g}", f"length={config.length}"
    each = f"length={config.length},tau={per_token(config.tau, config.length)}"
    # Greedy filters leave one token, so that MTAD with them writes the large model's own text.
    ways = ("verify=raw", f"verify=filtered{SUFFIX}", f"verify=raw{SUFFIX}")
    ours = [f"{kind}:{joint},{way}" for kind in ("mtad", "mmtad") for way in ways]
    methods = (
        *("large", f"large{SUFFIX}", f"beam:width={max(2, config.beams)}", "small"),
        *(*_exact(config, ""), *_exact(config, SUFFIX), f"speculative:{block},accept=block{SUFFIX}"),
        *(f"mtad:{joint},verify=filtered", *ours),
        *(f"{kind},{way}" for kind in (f"joint:{alone}", f"fixed:{each}") for way in ways),
        *(f"typical:{block}{SUFFIX}", f"bild:{block}", f"fsd:{block}", f"fsd:{block}{SUFFIX}"),
    )
    claims = [claim for text in ours for claim in _claims(config, text, f"fixed:{each},{text.rpartition(',')[2]}")]
    return Preset(methods, tuple(claims), {})


def _claims(config: Tables, text: str, fixed: str) -> list[Claim]:
    """Who draws is compared with who draws."""
    mode = SUFFIX if text.endswith(SUFFIX) else ""
    return [
        Claim(text, (f"speculative:length={config.length}{mode}",), "exact speculative decoding at the same length"),
        Claim(text, _exact(config, mode), "exact speculative decoding at its best length"),
        Claim(text, (f"large{mode}",), "the large model alone"),
        Claim(text, (fixed,), "a fixed ratio per token"),
    ]


def _exact(config: Tables, mode: str) -> tuple[str, ...]:
    return tuple(f"speculative:length={n}{mode}" for n in sorted({1, 2, config.length}))


def per_token(tau: float, length: int) -> float:
    """What every token must have so that a block of ``length`` has ``tau``."""
    return float(f"{tau ** (1 / length):.4g}")


def _gamma(config: Tables) -> Preset:
    return _varied(
        config,
        LENGTHS,
        {
            "MTAD": lambda n: _text("mtad", config, length=n),
            "MMTAD": lambda n: _text("mmtad", config, length=n),
            "speculative, exact": lambda n: f"speculative:length={n}{_mode(config)}",
        },
    )


def _beta(config: Tables) -> Preset:
    return _varied(
        config,
        BEAMS,
        {
            "MTAD": lambda n: _text("mtad", config, beams=n),
            "MMTAD": lambda n: _text("mmtad", config, beams=n),
            "speculative, exact": lambda n: f"speculative:length={config.length}{_mode(config)}",
        },
    )


def _tau(config: Tables) -> Preset:
    last = f"verify={_verify(config)}{_mode(config)}"
    return _varied(
        config,
        TAUS,
        {
            "MTAD": lambda t: _text("mtad", config, tau=t),
            "MTAD's rule without beams": lambda t: f"joint:length={config.length},tau={t:g},{last}",
            "fixed ratio": lambda t: f"fixed:length={config.length},tau={per_token(t, config.length)},{last}",
            "speculative, exact": lambda t: f"speculative:length={config.length}{_mode(config)}",
        },
    )


def _varied(config: Tables, values: Sequence[float], series: dict) -> Preset:
    """One line a series; each setting of MTAD beside exact speculative decoding and the large model alone."""
    lines = {name: [(x, make(x)) for x in values] for name, make in series.items()}
    exact, mode = dict(lines["speculative, exact"]), _mode(config)
    texts = dict.fromkeys(text for line in lines.values() for _, text in line)
    # With one beam the tree is the chain; with one token there is no joint: such doubles are measured as they are.
    claims = [
        Claim(text, others, what)
        for x, text in lines["MTAD"]
        for others, what in (
            ((exact[x],), "exact speculative decoding at the same length"),
            ((f"large{mode}",), "the large model alone"),
        )
    ]
    return Preset((f"large{mode}", "small", *texts), tuple(claims), lines)


def _text(kind: str, config: Tables, **changes) -> str:
    options = {"beams": config.beams, "length": config.length, "tau": config.tau} | changes
    pairs = ",".join(f"{key}={value:g}" for key, value in options.items())
    return f"{kind}:{pairs},verify={_verify(config)}{_mode(config)}"


def _verify(config: Tables) -> str:
    return "filtered" if config.drawing else "raw"  # greedy filters leave one token


def _mode(config: Tables) -> str:
    return SUFFIX if config.drawing else ""


AXES = {"gamma": "draft length", "beta": "beams", "tau": "threshold tau"}
PRESETS = {"main": _main, "gamma": _gamma, "beta": _beta, "tau": _tau}

if __name__ == "__main__":
    sys.exit(main())
