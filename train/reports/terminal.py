"""Tables for the terminal: no word is broken at 80 columns, and columns that do not fit side by side follow below."""

import re
from collections.abc import Collection, Iterator, Sequence
from textwrap import TextWrapper
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from train.common.progress import console, say
from train.reports.tables import cells, columns_of

GAP = 2
LEAST = 20  # width that is left to the names of the rows
REPEATED = (" model alone", " hand-off, rate", "speculative, ", "the ", ", length", " policy")
"""Parts of labels without which methods can still be told apart."""
REPORT_ONLY = ("recovered", "total_time_ratio", "length_ratio")  # the others fit side by side


def print_table(result: dict[str, Any], columns: dict | None = None) -> None:
    """Print the methods of a result, the tuned one in bold; ``columns`` as ``tables.COLUMNS``."""
    if columns is None:
        columns = {key: shown for key, shown in columns_of(result).items() if key not in REPORT_ONLY}
    head, *rows = cells(result, columns)
    head = [name.partition(" (")[0] for name in head]  # without the name of a grader
    rows = [[_short(name), *numbers] for name, *numbers in rows]
    tuned = [i for i, method in enumerate(result.get("methods", [])) if method["key"] == "tuned"]
    print_rows(head, rows, str(result.get("name", "")), "in brackets: 95 % intervals over prompts", tuned)


def _short(label: str) -> str:
    for part in REPEATED:
        label = label.replace(part, "")
    return label


def print_rows(
    head: Sequence[str], rows: Sequence[Sequence[object]], title: str = "", note: str = "", bold: Collection[int] = ()
) -> None:
    """Print rows of a name and numbers, those numbered ``bold`` in bold, intervals in brackets below their number."""
    body = [[_stacked(cell) for cell in row[1:]] for row in rows]
    most = console.width - LEAST - GAP
    widths = [min(most, _width(name, [row[i] for row in body])) for i, name in enumerate(head[1:])]
    for part in _parts(widths, console.width - LEAST):
        room = console.width - sum(widths[i] + GAP for i in part)
        table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, GAP - 1, 0, 0), pad_edge=False)
        table.add_column(Text(head[0]), max_width=room, overflow="fold")
        for i in part:
            table.add_column(Text(head[1 + i]), width=widths[i], justify="right", overflow="fold")
        for number, (row, own) in enumerate(zip(rows, body, strict=True)):
            name = "\n".join(Names(room).wrap(str(row[0])))
            table.add_row(Text(name), *(own[i] for i in part), style="bold" if number in bold else None)
        say(*([Text(title)] if title else ()), table, "")
    if note:
        say(Text(note, "dim"))


class Names(TextWrapper):
    """Breaks lines at spaces, and after what separates the parts of a path or the options of a method."""

    wordsep_re = re.compile(r"(\s+|[^\s,:/=]*[,:/=]+)")


def _stacked(cell: object) -> Text:
    value, bracket, interval = str(cell).partition(" [")
    return Text.assemble(value, (f"\n[{interval}", "not bold dim")) if bracket else Text(value)


def _width(head: str, cells: Sequence[Text]) -> int:
    """Of the widest word of the head and the widest line of the cells."""
    lines = [line for cell in cells for line in cell.split()]
    return max((text.cell_len for text in (*map(Text, head.split()), *lines)), default=0)


def _parts(widths: Sequence[int], room: int) -> Iterator[list[int]]:
    """The columns, numbered from 0 and in order, in parts of which each fits into ``room``."""
    part: list[int] = []
    for i in range(len(widths)):
        if part and sum(widths[j] + GAP for j in (*part, i)) > room:
            yield part
            part = []
        part.append(i)
    yield part
