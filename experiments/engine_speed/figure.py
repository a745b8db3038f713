"""The picture of a speed comparison: bars of the first batch size, and throughput where there are several."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from experiments.engine_speed.summary import BASES
from train.reports.figure import dress, save
from train.reports.plane import COLOURS, INK

ENGINES = {
    "transformers": ("transformers", COLOURS["large"]),
    "llamacpp": ("llama.cpp, its own quantised weights", COLOURS["llamacpp"]),
    "": ("this engine", COLOURS["tuned"]),
}
"""Engine and colour, by the prefix of a method's name; the first match counts."""


def draw(result: dict, path: Path | str) -> None:
    """Bars of the speed relative to the first base, with intervals, a token's time and the number of equal texts."""
    batches = result["batches"]
    first, found = next(iter(batches.items()))
    width = 16 if len(batches) > 1 else 9
    picture = Figure(figsize=(width, 1.8 + 0.34 * len(found["methods"])), dpi=150, facecolor="white", layout="tight")
    axes = picture.subplots(1, 2 if len(batches) > 1 else 1, squeeze=False)[0]
    _bars(axes[0], found, f"batch {first}, {found['groups']} groups of prompts")
    if len(batches) > 1:
        _throughput(axes[1], batches)
    save(picture, path)


def engine(method: str) -> tuple[str, str]:
    """(name, colour) of the engine that runs a method."""
    return next(value for prefix, value in ENGINES.items() if method.startswith(prefix))


def _bars(axes: Axes, found: dict, title: str) -> None:
    methods = found["methods"]
    base = next(base for base in BASES if base in methods)
    own = methods.get("autoregressive", {}).get("ratios", {}).get(base, {"median": 1.0})["median"]
    for place, (method, row) in enumerate(methods.items()):
        name, colour = engine(method)
        ratio = row["ratios"].get(base, {"median": 1.0, "interval": None})
        axes.barh(place, ratio["median"], 0.68, color=colour, label=name)
        if ratio["interval"] is not None:
            low, high = ratio["interval"]
            axes.plot([low, high], [place, place], color=INK, lw=1.4)
        if row["limit"] is not None:
            axes.plot([row["limit"] * own] * 2, [place - 0.4, place + 0.4], color=INK, lw=2.2)
        same = "{} of {}".format(*row["equal"])
        axes.text(0.02, place, f"{row['ms_per_token']:.3g} ms, {same} same", va="center", fontsize=7, color="white")
    axes.axvline(1.0, color=INK, lw=0.8, ls=(0, (1, 2)))
    axes.set_yticks(range(len(methods)), list(methods), fontsize=8.5)
    axes.set_ylim(len(methods) - 0.4, -0.6)
    tick = "; dark tick: limit of a hand-off" if any(row["limit"] is not None for row in methods.values()) else ""
    axes.set_xlabel(f"times as fast as {base}, median over prompts{tick}", fontsize=9.5, color=INK)
    _frame(axes, title)


def _throughput(axes: Axes, batches: dict) -> None:
    sizes = [int(batch) for batch in batches]
    every = [m for m in next(iter(batches.values()))["methods"] if all(m in b["methods"] for b in batches.values())]
    for i, method in enumerate(every):
        speeds = [b["methods"][method]["tokens_per_second"] for b in batches.values()]
        shade = {"alpha": 0.45 + 0.55 * (i + 1) / len(every), "color": engine(method)[1]}
        axes.plot(sizes, speeds, "o-", lw=1.4, ms=4, **shade)
        axes.annotate(method, (sizes[-1], speeds[-1]), (4, 0), textcoords="offset points", fontsize=7.5, va="center")
    axes.set_xscale("log", base=2)
    axes.set_ylim(0)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("rows written at once", fontsize=9.5, color=INK)
    _frame(axes, "tokens per second, all rows together")


def _frame(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=11, color=INK, loc="left", weight="bold")
    dress(axes, "x", 8.5)
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        once = dict(zip(labels, handles, strict=True))
        style = {"frameon": False, "fontsize": 8.5, "loc": "upper right", "ncols": 3}
        axes.legend(once.values(), once.keys(), bbox_to_anchor=(1, 0), borderaxespad=4.5, **style)
