"""The sentence of a command that refuses its input can be shown on any terminal, and commands none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from train.common.cli import InputError, attempt

ROOT = Path(__file__).parents[2]


def test_what_a_sentence_quotes_commands_no_terminal(capsys):
    def refuse():
        raise InputError("日: \x1b]52;c;aGk=\x07 and \x9b31m [/x]")

    assert attempt("fit_policy", refuse) == 2
    assert capsys.readouterr().err == "fit_policy: 日: \\x1b]52;c;aGk=\\x07 and \\x9b31m [/x]\n"


@pytest.mark.parametrize("how", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}], ids=str)
def test_an_ascii_terminal_gets_escapes(how):
    lines = (
        "from train.common.cli import InputError, attempt",
        "from train.common.progress import say, track",
        "def job(): say('ma\\xdf'); list(track([1], '\\u65e5')); raise InputError('\\u2013')",
        "raise SystemExit(attempt('job', job))",
    )
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | how)
    assert (done.returncode, done.stderr) == (2, "job: \\u2013\n")
    assert done.stdout.startswith("ma\\xdf\n\\u65e5")
