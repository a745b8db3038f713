"""A picture of served traffic: live shares beside those of the artifact, and the columns that differ most."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.monitoring.drift import MODERATE
from train.monitoring.watch import Verdict
from train.reports.figure import dress, legend, save
from train.reports.plane import FAINT, INK

SHOWN = 4
COLOURS = ("#3b6fb6", "#c8553d", "#4f8f5b", "#8a63a8")
SHARES = {"escalated": COLOURS[0], "accepted": COLOURS[1]}


def draw(verdict: Verdict, path: Path) -> None:
    """Write the PNG ``path``: above the shares, below the PSI of the columns that differ most, by texts served."""
    picture = Figure(figsize=(9, 6.2), dpi=150, facecolor="white")
    above, below = picture.subplots(2, 1, sharex=True)
    picture.subplots_adjust(0.09, 0.2, 0.97, 0.95, hspace=0.12)
    texts = [batch.last for batch in verdict.batches]
    for name, colour in SHARES.items():
        if name in verdict.reference["columns"]:
            live = [batch.drift.columns[name]["mean"] for batch in verdict.batches]
            above.plot(texts, live, "o-", ms=4, color=colour, label=f"{name}, live")
            was = verdict.reference["columns"][name]["mean"]
            above.axhline(was, color=colour, ls="--", lw=1, label=f"{name}, when it was tuned")
    last = (verdict.moved or verdict.batches[-1]).drift.columns
    for name, colour in zip(sorted(last, key=lambda name: -last[name]["psi"])[:SHOWN], COLOURS, strict=False):
        psi = [batch.drift.columns[name]["psi"] for batch in verdict.batches]
        below.plot(texts, psi, "o-", ms=4, color=colour, label=f"PSI of {name}")
    below.axhline(MODERATE, color=FAINT, ls=":", lw=1, label="a moderate shift")
    _finish(verdict, above, below)
    save(picture, path)


def _finish(verdict: Verdict, above: Axes, below: Axes) -> None:
    for axes, title in ((above, "share of steps"), (below, "population stability index")):
        if verdict.moved is not None:
            axes.axvline(verdict.moved.last, color=INK, lw=1)
        axes.set_ylabel(title, color=INK)
        axes.set_ylim(bottom=0)
        dress(axes)
    below.set_xlabel("texts served", color=INK)
    below.legend(frameon=False, fontsize=9, labelcolor=INK)
    legend(above)
