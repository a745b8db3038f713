"""The HTML that every page is made of: self-contained, and whatever others wrote is escaped."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from plotly.offline import get_plotlyjs

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'; img-src data: blob:"
"""The content policy of the page: a browser loads nothing from elsewhere."""
STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #1f2430; max-width: 1040px; margin: 40px auto; padding: 0 20px }
h1 { font-size: 28px; margin: 0 } h2 { font-size: 20px; margin: 44px 0 8px }
.verdict { font-size: 19px; border-left: 4px solid #009e73; padding: 4px 0 4px 14px; margin: 14px 0 }
.faint { color: #6b7280; font-size: 14px; overflow-wrap: anywhere } .wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 14.5px; font-variant-numeric: tabular-nums }
th, td { padding: 5px 14px 5px 0; text-align: right; border-bottom: 1px solid #e7e9ee; white-space: nowrap }
th:first-child, td:first-child { text-align: left } th { color: #6b7280; font-weight: 600 }
tr.tuned td { font-weight: 700; color: #00775a }
.sample { border: 1px solid #e7e9ee; border-radius: 8px; padding: 12px 16px; margin: 12px 0 }
.prompt, .text { white-space: pre-wrap; overflow-wrap: anywhere } .prompt { color: #6b7280; margin-bottom: 8px }
.both { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 20px }
.text span, .key { border-radius: 3px; padding: 1px 0 } .key { padding: 1px 6px; margin-right: 6px }
"""


def page(title: str, sections: Iterable[str]) -> str:
    """A whole page of ``sections``, which are HTML, with the library that draws its charts."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
        f"<script>{get_plotlyjs()}</script></head>"
        f"<body>{''.join(sections)}</body></html>"
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
