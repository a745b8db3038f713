"""A bar on a terminal; elsewhere lines with the count and the time left, at least once a minute, also in the log."""

import io
import time

import pytest

from decoding.cli.terminal import PlainConsole
from train.common import progress


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_the_line_says_the_count_and_the_time_left():
    clock = Clock()
    step = progress.Step("collecting traces", 40, 10, clock)
    clock.now += 9
    assert step.line() == "collecting traces 10/40, 0:00:09 so far"
    step.done, clock.now = 12, clock.now + 11
    assert step.line() == "collecting traces 12/40, 0:04:40 left"  # 10 s each: those done before took none of this time
    step.done, clock.now = 13, clock.now + 3600
    assert step.line() == "collecting traces 13/40, 9:03:00 left"
    step.done = 40
    assert step.line() == "collecting traces 40/40, 1:00:20 in all"
    assert progress.Step("timing both models", 1, 0, clock).line() == "timing both models, 0:00:00 so far"


def test_a_line_is_printed_at_least_once_a_minute_though_no_item_ends(monkeypatch, capsys):
    assert progress.EVERY <= 60
    monkeypatch.setattr(progress, "EVERY", 0.05)
    for _ in progress.track([1, 2], "decoding"):
        seen = ""
        until = time.monotonic() + 20
        while "decoding " not in seen and time.monotonic() < until:
            time.sleep(0.01)
            seen = capsys.readouterr().out  # each line is flushed: it is there before the item ends
        assert "\x1b" not in seen
        assert "so far\n" in seen or "left\n" in seen
    assert capsys.readouterr().out.endswith("decoding 2/2, 0:00:00 in all\n")


def test_short_steps_print_one_line_and_empty_ones_none(capsys):
    assert list(progress.track(range(3), "grading [b]")) == [0, 1, 2]
    assert list(progress.track([], "nothing")) == []
    assert capsys.readouterr().out == "grading [b] 3/3, 0:00:00 in all\n"


def test_a_step_that_fails_says_nothing_more_and_leaves_no_thread(monkeypatch, capsys):
    def stopped():
        for _ in progress.track([1], "decoding"):
            raise KeyboardInterrupt

    monkeypatch.setattr(progress, "EVERY", 0.01)
    with pytest.raises(KeyboardInterrupt):
        stopped()
    capsys.readouterr()
    time.sleep(0.1)
    assert capsys.readouterr().out == ""


def test_a_terminal_shows_a_bar_and_the_log_the_lines(monkeypatch, tmp_path):
    out = io.StringIO()
    monkeypatch.setattr(progress, "console", PlainConsole(file=out, force_terminal=True, width=80))
    with progress.log_to(tmp_path / "log.txt"):
        list(progress.track([1, 2], "decoding"))
        progress.say("done", style="bold")
    progress.say("not in the log")
    assert "━" in out.getvalue()
    assert "took" not in out.getvalue()
    assert (tmp_path / "log.txt").read_text() == "decoding 2/2, 0:00:00 in all\ndone\n"


NAME = "runs/[/x] [bold]a[/bold] :fire: \x1b]52;c;aGk= \x9b"
SHOWN = r"runs/[/x] [bold]a[/bold] :fire: \x1b]52;c;aGk= \x9b"


@pytest.mark.parametrize("terminal", [False, True])
def test_names_are_printed_as_they_are(terminal, monkeypatch, tmp_path):
    out = io.StringIO()
    console = PlainConsole(file=out, force_terminal=terminal, width=200, color_system=None)
    monkeypatch.setattr(progress, "console", console)
    with progress.log_to(tmp_path / "log.txt"):
        progress.say(NAME)
        list(progress.track([1], NAME))
    for text in (out.getvalue(), (tmp_path / "log.txt").read_text()):
        assert SHOWN in text
        assert text.count(SHOWN[:36]) >= 2
        assert "\x1b]" not in text
        assert "\x9b" not in text


def test_a_name_that_is_not_utf8_does_not_end_the_job(tmp_path):
    with progress.log_to(tmp_path / "log.txt"):
        progress.say("runs/\udcff")
    assert (tmp_path / "log.txt").read_text() == "runs/\\udcff\n"
