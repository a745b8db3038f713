"""The tables of the MTAD paper as lists of methods, with the claims about them."""

from collections.abc import Callable
from dataclasses import dataclass

from experiments.comparison.methods import SUFFIX
from experiments.comparison.settings import PaperTables

EXACT = "speculative, exact"
LENGTHS, BEAMS, TAUS = (1, 2, 3, 4, 6, 8), (1, 2, 4, 8), (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Claim:
    """A comparison of ``method`` with the fastest of ``others``; ``what`` describes them."""

    method: str
    others: tuple[str, ...]
    what: str


@dataclass(frozen=True)
class Preset:
    """The methods of a table, the claims about them, and the lines of its plot: series of (setting, method)."""

    methods: tuple[str, ...]
    claims: tuple[Claim, ...]
    lines: dict[str, list[tuple[float, str]]]


def _main(config: PaperTables) -> Preset:
    """Greedy methods, or those that draw: their losses are not comparable, so each have a table."""
    joint = f"beams={config.beams},length={config.length},tau={config.tau:g}"
    alone, block = f"length={config.length},tau={config.tau:g}", f"length={config.length}"
    each = f"length={config.length},tau={per_token(config.tau, config.length)}"
    tree = "-".join(["1"] * config.length).replace("1", str(config.beams), 1)
    # Greedy filters leave one token, so filtered MTAD writes the large model's own text.
    ways = ("verify=raw", f"verify=filtered{SUFFIX}", f"verify=raw{SUFFIX}")
    ours = [f"{kind}:{joint},{way}" for kind in ("mtad", "mmtad") for way in ways]
    methods = (
        *(f"beam:width={max(2, config.beams)}", "small", f"small{SUFFIX}", f"large{SUFFIX}"),
        *(*_exact(config, ""), *_exact(config, SUFFIX), f"speculative:{block},accept=block{SUFFIX}"),
        # A tree of as many nodes as MMTAD's largest.
        *(f"specinfer:branches={tree}", f"specinfer:branches={tree}{SUFFIX}"),
        *(f"mtad:{joint},verify=filtered", *ours),
        *(f"{kind},{way}" for kind in (f"joint:{alone}", f"fixed:{each}") for way in ways),
        *(f"typical:{block}{SUFFIX}", f"bild:{block}", f"fsd:{block}", f"fsd:{block}{SUFFIX}"),
    )
    claims = [claim for text in ours for claim in _claims(config, text, f"fixed:{each},{text.rpartition(',')[2]}")]
    here = lambda text: text.endswith(SUFFIX) == config.drawn  # noqa: E731
    return Preset(("large", *filter(here, methods)), tuple(c for c in claims if here(c.method)), {})


def _claims(config: PaperTables, text: str, fixed: str) -> list[Claim]:
    """Methods that draw are compared with methods that draw."""
    mode = SUFFIX if text.endswith(SUFFIX) else ""
    return [
        Claim(text, (f"speculative:length={config.length}{mode}",), "exact speculative decoding at the same length"),
        Claim(text, _exact(config, mode), "exact speculative decoding at its best length"),
        Claim(text, (f"large{mode}",), "the large model alone"),
        Claim(text, (fixed,), "a fixed ratio per token"),
    ]


def _exact(config: PaperTables, mode: str) -> tuple[str, ...]:
    return tuple(f"speculative:length={n}{mode}" for n in sorted({1, 2, config.length}))


def per_token(tau: float, length: int) -> float:
    """The ratio that each of ``length`` tokens needs for a product of ``tau``."""
    return float(f"{tau ** (1 / length):.4g}")


def _varied(config: PaperTables) -> Preset:
    """A line for each series; claims compare each setting of MTAD with exact decoding and the large model alone."""
    mode = SUFFIX if config.drawn else ""
    last = f"verify={'filtered' if config.drawn else 'raw'}{mode}"  # greedy filters leave one token

    def mtad(kind: str, **changes: float) -> str:
        options = {"beams": config.beams, "length": config.length, "tau": config.tau} | changes
        return f"{kind}:{','.join(f'{key}={value:g}' for key, value in options.items())},{last}"

    def both(setting: str) -> dict[str, Callable[[float], str]]:
        return {kind.upper(): lambda x, kind=kind: mtad(kind, **{setting: x}) for kind in ("mtad", "mmtad")}

    constant = {EXACT: lambda x: f"speculative:length={config.length}{mode}"}
    without_beams = {
        "MTAD": lambda t: mtad("mtad", tau=t),
        "MTAD's rule without beams": lambda t: f"joint:length={config.length},tau={t:g},{last}",
        "fixed ratio": lambda t: f"fixed:length={config.length},tau={per_token(t, config.length)},{last}",
    }
    values, series = {
        "gamma": (LENGTHS, both("length") | {EXACT: lambda n: f"speculative:length={n}{mode}"}),
        "beta": (BEAMS, both("beams") | constant),
        "tau": (TAUS, without_beams | constant),
    }[config.table]
    lines = {name: [(x, make(x)) for x in values] for name, make in series.items()}
    alone = (f"large{mode}",)
    claims = []
    for (_, text), (_, exact) in zip(lines["MTAD"], lines[EXACT], strict=True):
        claims.append(Claim(text, (exact,), "exact speculative decoding at the same length"))
        claims.append(Claim(text, alone, "the large model alone"))
    texts = dict.fromkeys(text for line in lines.values() for _, text in line)
    return Preset((*alone, "small", *texts), tuple(claims), lines)


AXES = {"gamma": "draft length", "beta": "beams", "tau": "threshold tau"}
PRESETS = {"main": _main} | dict.fromkeys(AXES, _varied)
