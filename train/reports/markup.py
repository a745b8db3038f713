"""The HTML that every page is made of: self-contained, and whatever others wrote is escaped."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from train.reports import drawing
from train.reports.style import STYLE

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'; img-src data: blob:"
"""The content policy of the page: a browser loads nothing from elsewhere."""


def page(title: str, sections: Iterable[str]) -> str:
    """A whole page of ``sections``, which are HTML, with the library that draws its charts."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
        f"</head><body>{''.join(sections)}{drawing.library()}</body></html>"
    )


def section(title: str, body: str, note: str = "") -> str:
    """A part of a page, ``body`` being HTML; empty without a body."""
    below = f'<p class="faint">{escape(note)}</p>' if note else ""
    return f'<section><h2>{escape(title)}</h2>{below}<div class="wide">{body}</div></section>' if body else ""


def grid(head: Sequence[Any], rows: Iterable[Sequence[Any]], marked: Sequence[bool] = ()) -> str:
    """A table, some of its rows marked; empty without rows."""
    lines = ["".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows]
    marks = [*marked, *[False] * len(lines)]
    body = [f'<tr class="tuned">{x}</tr>' if m else f"<tr>{x}</tr>" for x, m in zip(lines, marks, strict=False)]
    top = "".join(f"<th>{escape(str(cell))}</th>" for cell in head)
    return f"<table><tr>{top}</tr>{''.join(body)}</table>" if lines else ""


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def faint(parts: Iterable[str]) -> str:
    """A small line of the parts that are not empty."""
    text = escape("  ·  ".join(part for part in parts if part))
    return f'<p class="faint">{text}</p>' if text else ""
