"""Tables show the result's own numbers, and nothing where there is none."""

import re

import pytest
from result_specimens import HOSTILE, found
from rich.cells import cell_len

from train.reports import tables, terminal


@pytest.fixture
def result():
    return found()


def test_table_shows_the_results_own_numbers(result):
    lines = tables.table(result).splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert cells[0][:4] == ["method", "tokens/s", "speedup", "guarded regret"]
    assert cells[7] == [
        "tuned policy $5 [x]", "24.1", "1.32 [1.29, 1.35]", "0.048 [0.040, 0.056]", "88%", "48%", "1.02", "0.76",
        "25%"
    ]  # fmt: skip
    assert cells[2][2:4] == ["1.00", "0.000"]  # the reference has no interval
    assert cells[8][4] == cells[8][5] == "–"
    assert {len(row) for row in cells} == {9}  # also the row whose label holds a pipe
    assert len({len(line) for line in lines}) == 1


def test_a_score_comes_first_with_its_difference_and_the_cap(result, printed):
    for row in result["methods"]:
        row |= {"score": 0.5, "score_interval": [0.4, 0.6], "score_difference": -0.02, "guarded": 0.03}
        row["score_difference_interval"] = [-0.05, 0.01]
    head, tuned = (tables.cells(result)[i] for i in (0, 6))
    assert head[:6] == ["method", "score", "minus large", "at length cap", "tokens/s", "speedup"]
    assert tuned[1:4] == ["0.500 [0.400, 0.600]", "-0.020 [-0.050, +0.010]", "25%"] and "0.030" in tuned
    assert "gap recovered" not in head and head.count("guarded regret") == 1
    assert printed(result).index("score") < printed(result).index("tokens/s")


def test_how_well_guarded_regret_predicts_the_score_is_a_line(result):
    assert tables.grading_line(result) is None
    found = {"grader": "code", "failed": 0, "methods": 5, "over_methods": 0.9, "texts": 300, "over_texts": None}
    said = tables.grading_line(result | {"grading": found})
    assert said.endswith("0.90 over 5 methods, – over 300 texts.")
    assert "failed at texts of 2 prompts" in tables.grading_line(result | {"grading": found | {"failed": 2}})


def test_names_with_markup_and_control_characters_are_shown(result, printed):
    result["name"], result["methods"][1]["label"] = "[/x]\x1b[31m", "a\x9b[/b] :fire:"
    assert r"a\x9b[/b] :fire:" in tables.table(result)
    shown = printed(result)
    assert r"[/x]\x1b[31m" in shown
    assert r"a\x9b[/b]" in shown
    assert "\x1b" not in shown


def test_a_number_that_is_not_one_is_a_dash_and_an_empty_column_goes(result):
    for row in result["methods"]:
        row["large_share"] = None
    result["methods"][1]["loss"] = float("nan")
    text = tables.table(result)
    assert "by large model" not in text
    assert "nan" not in text
    assert "–" in text


def test_a_tiny_negative_loss_has_no_sign(result):
    result["methods"][1] |= {"loss": -1e-6, "loss_interval": [-0.0004, 0.0004]}
    assert "0.000 [0.000, 0.000]" in tables.table(result)
    assert "-0.000" not in tables.table(result)


@pytest.fixture
def printed(monkeypatch, capsys):
    """What the terminal shows of a result at a width of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def table(result):
        terminal.print_table(result)
        return capsys.readouterr().out

    return table


def test_the_terminal_shows_short_names_and_intervals_below(result, printed):
    lines = [line.rstrip() for line in printed(result).splitlines()]
    (large,) = (i for i, line in enumerate(lines) if line.split()[:2] == ["large", "18.2"])
    assert lines[large].split() == ["large", "18.2", "1.00", "0.000", "100%", "25%"]
    (tuned,) = (i for i, line in enumerate(lines) if line.startswith("tuned $5 [x] "))
    assert lines[tuned].split()[-5:] == ["24.1", "1.32", "0.048", "48%", "25%"]
    assert lines[tuned + 1].split() == ["[1.29,", "1.35]", "[0.040,", "0.056]"]
    assert "in brackets: 95 % intervals over prompts" in lines


LABELS = [
    "large model alone",
    "small model alone",
    "large model alone in llama.cpp",
    "random hand-off, rate 0.66",
    "speculative, exact, length 12",
    "speculative, exact, the best 4 at once",
    "speculative, best constant length 12",
    "speculative, tuned: logistic stop, at most 12",
    "tuned logistic policy",
    "MMTAD, 4 beams of 12, tau 0.5",
    "BiLD, fallback 0.6, rollback 5",
    "best leniency alone: constant length 12, Divergence 0.25, 0.125",
    "tuned: SpecInfer, exact, 4 branches of 12",
    "speculative:length=2,accept=block@sampling:temperature=1,top_k=10",
    "policy:runs/default/policy.json",
]


@pytest.mark.parametrize("text", LABELS)
def test_no_word_is_broken_at_80_columns(result, printed, text):
    result["methods"][5]["label"] = text
    for row in result["methods"]:
        row |= {"loss": -0.111, "loss_interval": [-0.123, 0.456], "speedup_interval": [10.25, 10.75]}
    out = printed(result)
    assert all(cell_len(line) <= 80 for line in out.splitlines())
    column = " ".join(line[:26] for line in out.splitlines())
    words = [word for word in re.split(r"[\s,:/=]+", text) if word in column]
    left_out = {"model", "alone", "hand-off", "rate", "speculative", "the", "length", "policy"}
    assert set(re.split(r"[\s,:/=]+", text)) - set(words) <= left_out


@pytest.mark.parametrize("text", [HOSTILE * 9, "漢" * 70, "a\nb\tc", "[bold]x[/bold]", ""])
@pytest.mark.parametrize("loss", ["guarded regret", "score lost (experiments.answer_numbers:exact_number)", "x" * 99])
def test_hostile_names_stay_within_80_columns(result, printed, text, loss):
    result["methods"][5]["label"], result["loss_name"] = text, loss
    out = printed(result | {"name": HOSTILE * 9})
    assert all(cell_len(line) <= 80 for line in out.splitlines())
    assert "".join(text.split())[:16] in "".join(out.split())


def test_columns_that_do_not_fit_follow_below(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    head = ["name", *(f"title{i}" for i in range(12))]
    terminal.print_rows(head, [["one", *(f"{i}.25 [{i}.0, {i}.5]" for i in range(12))]])
    out = capsys.readouterr().out
    assert all(cell_len(line) <= 80 for line in out.splitlines())
    assert out.split().count("one") > 1
    for i in range(12):
        assert f"title{i}" in out and f"{i}.25" in out and f"[{i}.0, {i}.5]" in out


def test_missing_keys_leave_a_table(result, printed):
    for key in result:
        partial = {name: value for name, value in result.items() if name != key}
        tables.table(partial)
        printed(partial)
    assert tables.table({}).splitlines()[0] == "| method |"
