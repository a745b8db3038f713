"""The tables of the MTAD paper (Qin et al. 2407.09722) on a small pair, with the controls that the paper lacks.

    python experiments/mtad.py --table main                 # everything at one draft length, greedy
    python experiments/mtad.py --table main --drawing       # the same with the paper's filters
    python experiments/mtad.py --table tau --limit 24       # gamma, beta, tau: one setting varied, a line plot

The main table compares MTAD and MMTAD, all at one draft length, with exact speculative decoding (also shorter), block
verification, MTAD's rule without beams, a fixed ratio per token that is as strict on a whole block (tau ** (1 /
length)), typical acceptance, BiLD, fuzzy speculative decoding, and the large model alone: greedy, drawing, and with
beam search. A column counts the draft tokens that the large model reads per call, since a tree has more.

Below the table is a sentence per claim: which method is faster and what it loses, with 95 % intervals over prompts.
"""

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

from dataclasses import replace
from typing import TYPE_CHECKING

from experiments.comparison.methods import parse
from experiments.comparison.presets import AXES, PRESETS, Claim
from experiments.comparison.settings import PaperTables
from train.common.cli import at_least, checking, command, positive
from train.common.progress import say

if TYPE_CHECKING:
    from experiments.comparison.summary import Measured


def with_defaults(config: PaperTables) -> PaperTables:
    """The settings with their defaults: fewer prompts where a setting is varied."""
    few = config.table != "main"
    found = {
        "limit": 40 if few else 100,
        "timed": 12 if few else 25,
        "name": f"mtad-{config.table}" + "-drawing" * config.drawn,
    }
    return replace(config, **{key: value for key, value in found.items() if getattr(config, key) is None})


def run(config: PaperTables) -> dict:
    """Measure the methods of the table, add the claims to result.json and print them."""
    from experiments.comparison.plots import draw_lines, how_timed
    from experiments.comparison.study import compare
    from train.common import atomic

    config = with_defaults(config)
    with checking():
        at_least(config, {"length": 1, "beams": 1})
        positive(config, "tau")
    preset = PRESETS[config.table](config)
    result, measured = compare(config, preset.methods)
    result |= {"table": config.table, "claims": [check_claim(measured, claim) for claim in preset.claims]}
    folder = config.output / config.name
    atomic.write_json(folder / "result.json", result)
    if preset.lines:
        rows = {row["key"]: row for row in result["methods"]}
        lines = {name: [(x, rows[canonical(text)]) for x, text in line] for name, line in preset.lines.items()}
        draw_lines(result, lines, AXES[config.table], folder / f"{config.table}.png")
        say(f"wrote {folder}/{config.table}.png")
    say(f"What follows from {how_timed(result)}:")
    for claim in result["claims"]:
        say(claim["sentence"], soft_wrap=True, highlight=False)
    return result


def canonical(text: str) -> str:
    """The text by which results name the method."""
    return str(parse(text))


def check_claim(measured: "Measured", claim: Claim) -> dict:
    """The claim in numbers and as a sentence, against the fastest of its others as measured."""
    from experiments.comparison.summary import loss_difference, speed_difference, speed_ratio

    key = canonical(claim.method)
    best = max(claim.others, key=lambda text: speed_ratio(measured, canonical(text), key))
    other = canonical(best)
    faster, (low, high) = speed_difference(measured, key, other).values()
    more, (least, most) = loss_difference(measured, key, other).values()
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


main = command(PaperTables, run, __doc__, lambda config: config.output / with_defaults(config).name)

if __name__ == "__main__":
    raise SystemExit(main())
