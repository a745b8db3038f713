"""The look of every page, on light and on dark screens, from a phone's width on."""

from train.reports.plane import DARK, FAINT, GRID, INK, PAPER


def _colours(tuned: str, **names: str) -> str:
    return ":root { " + "; ".join(f"--{name}: {colour}" for name, colour in {"tuned": tuned, **names}.items()) + " }"


LIGHT = _colours("#00775a", ink=INK, faint=FAINT, line=GRID, paper=PAPER)
NIGHT = _colours("#3ccb9f", ink=DARK[INK], faint=DARK[FAINT], line=DARK[GRID], paper=DARK[PAPER])
STYLE = (
    f"""
{LIGHT}
@media (prefers-color-scheme: dark) {{ {NIGHT} }}
"""
    + """
:root { color-scheme: light dark }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 1040px; margin: 40px auto; padding: 0 20px; overflow-wrap: anywhere }
h1 { font-size: 28px; margin: 0 } h2 { font-size: 20px; margin: 44px 0 8px }
.verdict { font-size: 19px; border-left: 4px solid #009e73; padding: 4px 0 4px 14px; margin: 14px 0 }
.faint { color: var(--faint); font-size: 14px } .wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 14.5px; font-variant-numeric: tabular-nums }
th, td { padding: 5px 14px 5px 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left } th { color: var(--faint); font-weight: 600 }
tr.tuned td { font-weight: 700; color: var(--tuned) }
.sample { border: 1px solid var(--line); border-radius: 8px; padding: 12px 16px; margin: 12px 0 }
.prompt, .text { white-space: pre-wrap; overflow-wrap: anywhere } .prompt { color: var(--faint); margin-bottom: 8px }
.both { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(280px, 100%), 1fr)); gap: 20px }
.text span, .key { border-radius: 3px; padding: 1px 0 } .key { padding: 1px 6px; margin-right: 6px }
@media (max-width: 600px) {
    body { margin: 20px auto; padding: 0 12px }
    td:first-child { white-space: normal; min-width: 110px; overflow-wrap: normal }
}
"""
)
