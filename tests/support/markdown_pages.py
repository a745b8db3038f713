"""What the Markdown pages of the project hold: links, the anchors of headings, and the commands of their blocks."""

import re
import shlex
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "experiments" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:(?<=\n\n)|\A)((?: {4}\S.*\n)(?:(?: {4}.*)?\n)*)")
INLINE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)|^\[[^\]]+\]:\s*(\S+)|\b(?:href|src)=\"([^\"]+)\"", re.MULTILINE)
PROGRAMS = ("python", "pip", "pytest")


def broken_links(page: Path, text: str | None = None) -> list[str]:
    """The links of a page, or of ``text`` in its place, to a file or a heading that is not there."""
    text = page.read_text(encoding="utf-8") if text is None else text
    plain = INLINE.sub("", FENCE.sub("", text))
    links = [next(filter(None, found)) for found in LINK.findall(plain)]
    return [link for link in links if not re.match(r"[a-z]+:", link) and not _leads_somewhere(page, text, link)]


def _leads_somewhere(page: Path, text: str, link: str) -> bool:
    path, _, anchor = link.partition("#")
    other = page.parent / path if path else page
    if not other.exists():
        return False
    if not anchor or other.suffix != ".md":
        return not anchor
    return anchor in anchors(other.read_text(encoding="utf-8") if path else text)


def anchors(text: str) -> set[str]:
    """The anchors that a forge gives to the headings of ``text``: letters, digits, hyphens; a number if taken."""
    found, taken = set(), Counter()
    for title in re.findall(r"^#{1,6} +(.+?) *#*$", FENCE.sub("", text), re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        name = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        found.add(f"{name}-{taken[name]}" if taken[name] else name)
        taken[name] += 1
    return found


def blocks(text: str, language: str) -> list[str]:
    """The blocks of ``text`` that are fenced as ``language``; as "sh" those that are only indented too."""
    found = [body for name, body in FENCE.findall(text) if name == language]
    if language == "sh":
        found += [re.sub(r"^ {4}", "", body, flags=re.MULTILINE) for body in INDENTED.findall(FENCE.sub("", text))]
    return found


def commands(text: str) -> list[list[str]]:
    """The words of each command of ours in the blocks of ``text``; an ellipsis is left out."""
    found = []
    for block in blocks(text, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            ours = [part for part in _parts(line) if part and part[0] in PROGRAMS]
            found += [[word for word in part if word != "..."] for part in ours]
    return found


def _parts(line: str) -> list[list[str]]:
    """The words of a line's commands, which ``&&`` or ``||`` joins, without its comment."""
    words, parts = shlex.split(line, comments=True), [[]]
    for word in words:
        parts.append([]) if word in ("&&", "||") else parts[-1].append(word)
    return parts
