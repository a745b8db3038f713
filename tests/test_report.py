"""Reports are pure functions of a result: the numbers are the result's, the page loads nothing, nothing is trusted."""

import copy
import io
import re

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from train import report

HOSTILE = "<script>alert(1)</script>"


def method(key, label, speed, speedup, loss, share, interval=True):
    return {
        "key": key,
        "label": label,
        "tokens_per_second": speed,
        "speedup": speedup,
        "speedup_interval": [speedup - 0.03, speedup + 0.03] if interval else [speedup, speedup],
        "loss": loss,
        "loss_interval": [loss - 0.008, loss + 0.008] if interval else [loss, loss],
        "large_share": share,
        "length_ratio": 1.02,
        "total_time_ratio": 1 / speedup,
        "recovered": None if key == "llamacpp" else 1 - loss / 0.4,
    }


@pytest.fixture
def result():
    ramp = np.linspace(0, 1, 21)
    return {
        "name": "story-1.3x",
        "created": "2026-11-22T10:00:00",
        "machine": {"cpu": "some cpu", "threads": 2, "torch": "2.13", "device": "cpu", "dtype": "float32"},
        "models": [{"name": name, "tokenizer": "t", "config": "c", "weights": "w"} for name in ("little", "big")],
        "goal": {"target_speedup": 1.3},
        "verdict": "1.32x faster & better than random <b>hand-off</b>",
        "policy": {
            "describe": "logistic(entropy) >= 0.31",
            "kind": "logistic",
            "label": "regret",
            "threshold": 0.31,
            "features": ["entropy", "margin"],
            "weights": {"margin": -0.2, "entropy": 1.25},
        },
        "splits": {name: {"prompts": 120, "groups": 118, "hash": name * 12} for name in ("fit", "tune", "holdout")},
        "cost": {"small": {"1": 0.0041}, "large": {"1": 0.05, "2": 0.052, "16": 0.0777}},
        "methods": [
            method("large", "large model alone", 18.2, 1.0, 0.0, 1.0, interval=False),
            method("small", "small model alone", 61.9, 3.4, 0.4, 0.0),
            method("random_low", "random hand-off, 55 %", 22.0, 1.22, 0.07, 0.55),
            method("random_high", "random hand-off, 45 %", 25.0, 1.38, 0.094, 0.45),
            method("speculative", "speculative, exact | length 4", 23.0, 1.26, 0.0, None),
            method("tuned", "tuned policy $5 [x]", 24.1, 1.32, 0.048, 0.48),
            method("llamacpp", "llama.cpp", 90.0, 4.9, 0.001, None),
        ],
        "frontier": {
            "policy": [[1 + 2.4 * t, 0.4 * t**1.8] for t in ramp.tolist()],
            "random": [[1 + 2.4 * t, 0.4 * t] for t in ramp.tolist()],
        },
        "replay": {"live_speedup_over_replayed": 0.97, "live_loss_over_replayed": 1.1},
        "comparison": {
            "random_loss_at_same_speed": 0.081,
            "difference": -0.033,
            "interval": [-0.045, -0.02],
            "confidence": 0.95,
        },
        "trials": [
            {"number": i, "params": {"C": 0.5, "label": HOSTILE}, "loss": 0.1, "speedup": 1 + i / 9, "feasible": i > 3}
            for i in range(9)
        ],
        "chosen_trial": 5,
        "samples": [{"prompt": f"Write {HOSTILE}", "tokens": [["Once", 0, 0.12], [" <b>&", 1, 0.9], ["\n.", 1, None]]}],
        "plain": {"regret": {"tuned": 0.0312, "small": 0.21}},
    }


@pytest.fixture
def page(result, tmp_path):
    report.write_html(result, tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def without_scripts(page):
    return re.sub(r"<script.*?</script>", "", page, flags=re.S)


def test_table_shows_the_results_own_numbers(result):
    lines = report.table(result).splitlines()
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
    text = report.table(result)
    assert "by large model" not in text
    assert "nan" not in text
    assert "–" in text


def test_a_tiny_negative_loss_has_no_sign(result):
    result["methods"][1] |= {"loss": -1e-6, "loss_interval": [-0.0004, 0.0004]}
    assert "0.000 [0.000, 0.000]" in report.table(result)
    assert "-0.000" not in report.table(result)


def test_rich_table_takes_labels_literally(result):
    out = io.StringIO()
    report.print_table(result, Console(file=out, width=200))
    assert "tuned policy $5 [x]" in out.getvalue()
    assert "1.32 [1.29, 1.35]" in out.getvalue()


def test_figure_is_a_picture_of_the_points(result, tmp_path):
    report.figure(result, tmp_path / "frontier.png")
    pixels = imread(tmp_path / "frontier.png")[..., :3]
    assert pixels.shape == (1140, 1800, 3)
    for colour in ("large", "small", "tuned", "speculative", "llamacpp", "random_low"):
        rgb = np.array([int(report.COLOURS[colour][i : i + 2], 16) / 255 for i in (1, 3, 5)])
        assert (np.abs(pixels - rgb).max(-1) < 0.01).sum() > 200, colour
    assert [p.name for p in tmp_path.iterdir()] == ["frontier.png"]


@pytest.mark.parametrize("goal", [{}, {"quality_budget": 0.05}, {"target_speedup": 9.0}])
def test_figure_of_other_goals_and_signed_losses(result, goal, tmp_path):
    result["goal"] = goal
    result["methods"][5] |= {"loss": -0.01, "loss_interval": None}
    result["methods"][4] |= {"loss": 0.01, "loss_interval": [0.02, 0.03]}  # an interval beside its own point
    result["frontier"] = {"policy": [[1.1, 0.02]], "random": []}
    report.figure(result, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size > 20_000


def test_page_has_every_method_and_section(result, page):
    text = without_scripts(page)
    for row in result["methods"]:
        assert f"<td>{row['label']}</td>" in text
    for title in ("Methods", "Frontier", "Search", "Policy", "Cost", "Splits", "Models and machine", "Samples"):
        assert f"<h2>{title}</h2>" in text
    assert "1.32 [1.29, 1.35]" in text
    assert "1.32x faster &amp; better than random &lt;b&gt;hand-off&lt;/b&gt;" in text
    assert "<td>large</td><td>50.00</td><td>52.00</td><td>77.70</td>" in text
    assert text.index("<td>entropy</td><td>+1.25</td>") < text.index("<td>margin</td><td>-0.2</td>")
    assert "0.081; difference -0.033 [-0.045, -0.020] (95% confidence)" in text
    assert "0.0312" in text
    assert "0.97 times its replayed speedup and 1.10 its loss" in text


def test_page_escapes_what_others_wrote(page):
    assert HOSTILE not in page
    assert "Write &lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert " &lt;b&gt;&amp;</span>" in page


def test_tokens_name_their_writer_and_risk(page):
    text = without_scripts(page)
    assert 'title="little, risk 0.120">Once</span>' in text
    assert 'title="big, risk 0.900">' in text
    assert 'title="big">\n.</span>' in text


def test_page_loads_nothing_from_elsewhere(page):
    """plotly's "cdn" is an empty page offline; what its library could load (map tiles) the content policy forbids."""
    tags = re.findall(r"<[a-z]+\b[^<>]*>", without_scripts(page)) + re.findall(r"<script\b[^>]*>", page)
    assert not [tag for tag in tags if re.search(r"""\b(src|href|srcset|action|data)\s*=|url\(|@import""", tag)]
    assert not re.search(r"https?://", without_scripts(page))
    assert "default-src 'none'" in page
    assert page.count("plotly.js v") == 1
    assert page.count("Plotly.newPlot(") >= 2


def test_missing_keys_leave_out_their_section(result, tmp_path):
    path = tmp_path / "report.html"
    for key in result:
        partial = copy.deepcopy(result)
        del partial[key]
        report.table(partial)
        report.print_table(partial, Console(file=io.StringIO()))
        report.write_html(partial, path)
    report.write_html({}, path)
    assert "<h2>" not in path.read_text()
    report.figure({}, tmp_path / "frontier.png")
    report.figure({key: result[key] for key in ("name", "methods")}, tmp_path / "frontier.png")
    result["policy"]["weights"] = None
    report.write_html(result, path)
    assert "<th>weight</th>" not in path.read_text()
    assert "features: entropy, margin" in path.read_text()


def test_a_failed_write_leaves_the_old_page(result, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(*args):
        raise OSError("disk full")

    monkeypatch.setattr(report.os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        report.write_html(result, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
