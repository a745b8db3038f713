"""Tables show the result's own numbers, and nothing where there is none."""

import io
import re

import pytest
from result_specimens import found
from rich.console import Console

from train.reports import tables


@pytest.fixture
def result():
    return found()


def test_table_shows_the_results_own_numbers(result):
    lines = tables.table(result).splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert cells[0][:4] == ["method", "tokens/s", "speedup", "guarded regret"]
    assert cells[7] == [
        "tuned policy $5 [x]", "24.1", "1.32 [1.29, 1.35]", "0.048 [0.040, 0.056]", "88%", "48%", "1.02", "0.76"
    ]  # fmt: skip
    assert cells[2][2:4] == ["1.00", "0.000"]  # the reference has no interval
    assert cells[8][4] == cells[8][5] == "–"
    assert {len(row) for row in cells} == {8}  # also the row whose label holds a pipe
    assert len({len(line) for line in lines}) == 1


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


def test_rich_table_takes_labels_literally(result):
    out = io.StringIO()
    tables.print_table(result, Console(file=out, width=200))
    assert "tuned policy $5 [x]" in out.getvalue()
    assert "1.32 [1.29, 1.35]" in out.getvalue()


def test_missing_keys_leave_a_table(result):
    for key in result:
        partial = {name: value for name, value in result.items() if name != key}
        tables.table(partial)
        tables.print_table(partial, Console(file=io.StringIO()))
    assert tables.table({}).splitlines()[0] == "| method |"
