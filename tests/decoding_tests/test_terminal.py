"""Nothing that a model, a prompt or a name says commands the terminal; what it cannot show is an escape."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from decoding.cli.terminal import PlainConsole, painter, visible
from decoding.state.streaming import Piece

ROOT = Path(__file__).parents[2]
COMMANDS = "\x1b]52;c;aGk=\x07 \x1b[31m \x9b31m \x90q\x9c \x7f\x08\r"


def test_control_characters_are_escapes():
    assert visible(COMMANDS) == r"\x1b]52;c;aGk=\x07 \x1b[31m \x9b31m \x90q\x9c \x7f\x08\r"
    assert visible("runs/\udcff") == r"runs/\udcff"  # as the name of a file that is not UTF-8 comes
    assert visible("naïve 日本 🙂\n\tnext \\x1b") == "naïve 日本 🙂\n\tnext \\x1b"
    shown = visible("".join(map(chr, range(0x110000 - 1))))
    assert [c for c in map(chr, range(256)) if c in shown and not c.isprintable()] == ["\t", "\n", "\xa0", "\xad"]


@pytest.mark.parametrize("options", [{}, {"force_terminal": True}], ids=["file", "terminal"])
@pytest.mark.parametrize("wrap", [str, Text, lambda text: table(text)], ids=["string", "text", "table"])
def test_a_console_prints_names_as_they_are(wrap, options):
    out = io.StringIO()
    name = "runs/[/x] [bold]a[/bold] :fire: \x1b[31m\x9b"
    PlainConsole(file=out, width=200, color_system=None, **options).print(wrap(name))
    assert r"runs/[/x] [bold]a[/bold] :fire: \x1b[31m\x9b" in out.getvalue()
    assert not set(out.getvalue()) & {"\x1b", "\x9b"}


def table(text):
    grid = Table(text, title=text)
    grid.add_row(text)
    return grid


@pytest.mark.parametrize("colours", ["colours", "NO_COLOR"])
def test_the_text_of_a_model_commands_no_terminal(colours, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if colours == "NO_COLOR":
        monkeypatch.setenv("NO_COLOR", "1")
    show = painter(["small", "large"])
    for text in ("a\x1b", "]52;c;aGk=\x07\n\tb\x9b31m[/x]"):
        show(Piece(0, text, 3, 0))
    out = capsys.readouterr().out.replace("\x1b[32m", "").replace("\x1b[0m", "")
    assert out.replace(" " * 8, "\t") == "a\\x1b]52;c;aGk=\\x07\n\tb\\x9b31m[/x]"


def test_a_file_gets_the_text_unchanged(monkeypatch, capsys):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    painter(["small", "large"])(Piece(0, "a\x1b\r\n\x9b", 3, 0))
    assert capsys.readouterr().out == "a\x1b\r\n\x9b"


@pytest.mark.parametrize("module", [pytest.param("decoding", marks=pytest.mark.slow), "policies.export"])
@pytest.mark.parametrize(
    "how",
    [{"PYTHONIOENCODING": "ascii"}, pytest.param({"LC_ALL": "C", "PYTHONUTF8": "0"}, marks=pytest.mark.slow)],
    ids=str,
)
def test_an_ascii_terminal_gets_escapes(module, how):
    arguments = {"decoding": ["w3", "--policy"], "policies.export": ["--check"]}[module]
    command = [sys.executable, "-m", module, *arguments, "日é\x1b"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, env=os.environ | how)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert b"\\u65e5\\xe9\\x1b" in done.stderr or b"\\udce6" in done.stderr
    assert done.stderr.isascii()
    assert b"\x1b" not in done.stderr


@pytest.mark.parametrize(
    ("source", "says"),
    [("</dev/zero", "over 16,777,216 bytes"), ("</dev/null", "empty"), ("<&-", "empty")],
)
def test_standard_input_that_is_no_text(source, says):
    command = f"ulimit -v 8000000; exec {sys.executable} -m decoding - {source}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
