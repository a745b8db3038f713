"""The Backoff Decoding experiment as a PNG: loss against the share of large tokens, and against the priced speedup."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from train.reports.figure import dress, legend, save
from train.reports.plane import COLOURS, FAINT, INK, bars

STYLES = {  # Okabe and Ito; oracles are hollow, chance is grey
    "kl_logistic": (COLOURS["large"], "o", "-"),
    "kl_mlp": ("#56b4e9", "s", "-"),
    "saving": (COLOURS["tuned"], "D", "-"),
    "entropy": (COLOURS["small"], "^", "-"),
    "top1": ("#e69f00", "v", "-"),
    "random": (COLOURS["random_low"], "o", "--"),
    "periodic": (COLOURS["random_low"], "|", ":"),
    "kl_oracle": (COLOURS["large"], "o", ":"),
    "regret_oracle": (COLOURS["tuned"], "D", ":"),
    "three_kl": (COLOURS["speculative"], "o", "-"),
    "three_saving": (COLOURS["speculative"], "D", "-"),
    "three_random": (COLOURS["speculative"], "x", "--"),
}


def draw(result: dict, path: Path) -> None:
    """One line per method through its rates, with 95 % intervals, from the small model alone for chance."""
    picture = Figure(figsize=(12, 6.2), dpi=160, facecolor="white")
    left, right = (picture.add_axes((x, 0.3, 0.425, 0.58)) for x in (0.065, 0.56))
    for axes, key in ((left, "large_share"), (right, "speedup")):
        for name in STYLES:
            _line(axes, [row for row in result["methods"] if row["key"] == name], name, key)
        small = next(row for row in result["methods"] if row["key"] == "small")
        axes.plot(small[key], small["loss"], "s", color=COLOURS["small"], ms=9, mec="white", label=small["label"])
        axes.margins(0.06, 0.1)
        dress(axes)
    _exact(left, right, result["speculative"])
    left.set_xlabel("share of tokens written by the large model", color=INK, fontsize=10.5)
    left.set_ylabel("guarded regret  (lower is better)", color=INK, fontsize=10.5)
    right.set_xlabel("priced speedup over the large model alone, decisions counted", color=INK, fontsize=10.5)
    right.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    _words(picture, right, result)
    save(picture, path)


def _line(axes: Axes, rows: list[dict], name: str, key: str) -> None:
    if not rows:
        return
    rows = sorted(rows, key=lambda row: row[key])
    colour, marker, line = STYLES[name]
    x, y = [row[key] for row in rows], [row["loss"] for row in rows]
    up = list(zip(*(bars(row, "loss") for row in rows), strict=True))
    fill = "white" if name.endswith("oracle") else colour
    style = {"color": colour, "ls": line, "marker": marker, "mfc": fill, "ms": 6, "lw": 1.5, "elinewidth": 0.9}
    axes.errorbar(x, y, up, label=rows[0]["label"], **style)


def _exact(left: Axes, right: Axes, speculative: dict) -> None:
    label = f"exact speculative, length {speculative['length']} (replayed)"
    right.plot(speculative["speedup"], 0.0, "*", color=COLOURS["speculative"], ms=13, mec="white", label=label)
    for axes in (left, right):
        axes.plot(1.0, 0.0, "s", color=COLOURS["large"], ms=9, mec="white", label="large model alone")


def _words(picture: Figure, axes: Axes, result: dict) -> None:
    title = f"Who writes the next token: {' / '.join(result['models'])}"
    picture.text(0.026, 0.945, title[:110], fontsize=14, color=INK, weight="bold", parse_math=False)
    below = f"{result['prompts']} unseen prompts, texts written live  ·  bars: 95 % bootstrap over prompts"
    picture.text(0.026, 0.905, below + "  ·  the price of oracles leaves their knowledge out", fontsize=9, color=FAINT)
    legend(axes, columns=4)
