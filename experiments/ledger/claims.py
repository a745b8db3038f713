"""The headline rows of the ledger (experiments/README.md) that the embedded pair can repeat, and their commands."""

import re
from collections.abc import Callable
from dataclasses import dataclass

Estimate = tuple[float, tuple[float, float]]
"""a value and the ends of its interval; both are the value where it has none"""
NUMBER = r"-?\d+(?:\.\d+)?"
AGREES = "the drafter agrees with the target on unseen prompts, share of tokens"
REPLAYED = ("length 1", "length 2", "length 4", "top1 <= 0.4", "survival 0.7")


@dataclass(frozen=True)
class Claim:
    """One number of the ledger, as it is written there, and where the command's result has it today."""

    about: str
    ledger: str
    found: Callable[[dict], Estimate]
    timed: bool = False
    """a ratio of times, which another machine may move"""


@dataclass(frozen=True)
class Command:
    """A command of experiments/, and the claims that one run of it tests."""

    name: str
    options: tuple[str, ...]
    sizes: dict[str, tuple[int, int]]
    """options that say how much is measured: as the ledger did, and with --quick"""
    result: str
    """the file that it writes, in the folder {folder}, which an option names"""
    claims: tuple[Claim, ...]
    models: bool = True
    """whether it runs models, and so takes --threads"""

    def arguments(self, folder: str, quick: bool, threads: int | None) -> list[str]:
        sizes = [text for name, size in self.sizes.items() for text in (name, str(size[quick]))]
        last = ["--threads", str(threads)] if self.models and threads is not None else []
        return [*(option.format(folder=folder) for option in self.options), *sizes, *last]


def recorded(ledger: str) -> Estimate:
    """What the ledger says: `1.21 [1.06, 1.36]`, `0.115 (0.105 to 0.118)`, `0.035 to 0.049`, `12 of 12` or `0.372`."""
    numbers = [float(text) for text in re.findall(NUMBER, ledger)]
    if " of " in ledger:
        numbers = [numbers[0] / numbers[1]]
    value = sum(numbers) / 2 if len(numbers) == 2 else numbers[0]
    return value, (numbers[-2], numbers[-1]) if len(numbers) > 1 else (value, value)


def moved(before: Estimate, now: Estimate) -> bool:
    """Whether the two intervals have no value in common."""
    (low, high), (least, most) = before[1], now[1]
    return most < low or high < least


def _of_method(start: str, key: str) -> Callable[[dict], Estimate]:
    """``key`` of the method of frontier.py whose name begins with ``start``."""

    def found(result: dict) -> Estimate:
        row = next(row for row in result["methods"] if row["key"].startswith(start))
        return row[key], tuple(row[f"{key}_interval"])

    return found


def _over(base: str, method: str) -> Callable[[dict], Estimate]:
    """The speed of a method of overhead.py over that of ``base``."""

    def found(result: dict) -> Estimate:
        ratio = result["batches"]["1"]["methods"][method]["ratios"][base]
        return ratio["median"], tuple(ratio["interval"])

    return found


def _over_losses(shown: Callable[[dict, str], float]) -> Callable[[dict], Estimate]:
    """The least and the greatest of four kinds of losses of certificates.py, and their middle."""

    def found(result: dict) -> Estimate:
        values = [shown(result, kind) for kind in result["broken"]]
        return (min(values) + max(values)) / 2, (min(values), max(values))

    return found


def _share(policy: str) -> Callable[[dict], Estimate]:
    """The cost of a decision of that ``policy`` in tokens of the drafter, its readings being the interval."""

    def found(result: dict) -> Estimate:
        shares = next(row for row in result["rows"] if row["policy"].startswith(policy))["shares"]
        return sum(shares) / len(shares), (min(shares), max(shares))

    return found


def _equal(result: dict) -> Estimate:
    """The least number of prompts with equal calls, of all ways to end a draft, as a share."""
    counts = [map(int, result["live"][way]["equal"].split("/")) for way in REPLAYED]
    share = min(equal / prompts for equal, prompts in counts)
    return share, (share, share)


FILE = ("--output", "{folder}/result.json")
COMMANDS = (
    Command(
        "certificates",
        FILE,
        {"--runs": (2000, 500)},
        "result.json",
        (
            Claim(
                "a certificate breaks its promise, share of runs",
                "0.035 to 0.049",
                _over_losses(lambda r, kind: r["broken"][kind]["certificate_breaks"]),
            ),
            Claim(
                "the best threshold on the tuning prompts breaks it",
                "0.373 to 0.475",
                _over_losses(lambda r, kind: r["broken"][kind]["naive_breaks"]),
            ),
            Claim(
                "certified at the budget itself, share of runs",
                "0.058 to 0.081",
                _over_losses(lambda r, kind: r["certified"][kind]["1.0"]),
            ),
        ),
        models=False,
    ),
    Command(
        "drafter",
        FILE,
        {"--limit": (48, 10), "--max-new-tokens": (64, 48)},
        "result.json",
        (
            Claim(AGREES, "0.372", lambda r: (r["agreement"], tuple(r["agreement_interval"]))),
            Claim(
                "one token costs it, in tokens of the target",
                "0.115 (0.105 to 0.118)",
                lambda r: (r["cost_ratio"], (r["cost_ratio"],) * 2),
                timed=True,
            ),
        ),
    ),
    Command(
        "replay",
        FILE,
        {"--limit": (12, 3), "--trials": (1000, 50), "--positions": (100_000, 2_000)},
        "result.json",
        (Claim("replayed drafts make the calls of live ones, share of prompts", "12 of 12 prompts", _equal),),
    ),
    Command(
        "decision",
        FILE,
        {"--limit": (6, 2), "--max-new-tokens": (48, 24)},
        "result.json",
        (
            Claim(
                "a decision of a rule on entropy, in tokens of the drafter",
                "**0.040**; 0.040",
                _share("rule"),
                timed=True,
            ),
            Claim("... of a logistic policy of all features", "**0.047**; 0.040", _share("logistic, all"), timed=True),
        ),
    ),
    Command(
        "frontier",
        (
            *("small", "speculative:length=2", "specinfer:branches=4", "mtad", "mmtad"),
            *("--max-new-tokens", "48", "--output", "{folder}", "--name", "frontier"),
        ),
        {"--limit": (100, 12), "--timed": (12, 4)},
        "frontier/result.json",
        (
            Claim("guarded regret of the small model alone", "0.418 [0.380, 0.458]", _of_method("small", "loss")),
            Claim("guarded regret of MTAD", "0.047 [0.033, 0.061]", _of_method("mtad", "loss")),
            Claim("guarded regret of MMTAD", "0.089 [0.066, 0.115]", _of_method("mmtad", "loss")),
            Claim(
                "speed over the large model alone: exact drafts of 2",
                "1.12 [1.03, 1.23]",
                _of_method("speculative", "speedup"),
                timed=True,
            ),
            Claim("... SpecInfer, exact", "1.30 [1.22, 1.36]", _of_method("specinfer", "speedup"), timed=True),
            Claim("... MTAD", "1.12 [1.02, 1.23]", _of_method("mtad", "speedup"), timed=True),
            Claim("... MMTAD", "1.32 [1.23, 1.41]", _of_method("mmtad", "speedup"), timed=True),
        ),
    ),
    Command(
        "overhead",
        (
            *("--methods", "transformers", "autoregressive", "speculative:2", "--large-dtype", "float32"),
            *("--output", "{folder}/overhead"),
        ),
        {"--limit": (6, 3), "--repeats": (2, 1), "--max-new-tokens": (64, 32)},
        "overhead/result.json",
        (
            Claim(
                "speed of the large model alone over transformers' generate, float32",
                "1.71 [1.60, 1.80]",
                _over("transformers", "autoregressive"),
                timed=True,
            ),
            Claim(
                "... exact drafts of 2 over the large model alone",
                "1.20 [1.05, 1.31]",
                _over("autoregressive", "speculative:2"),
                timed=True,
            ),
        ),
    ),
)
"""The quick ones first."""
