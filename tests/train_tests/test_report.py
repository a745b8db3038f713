"""Pages are pure functions of a result: the numbers are the result's, the page loads nothing, nothing is trusted."""

import gzip
import re
from base64 import b64decode

import pytest
from result_specimens import HOSTILE, found

from train.reports.page import write_html


@pytest.fixture
def result():
    return found()


@pytest.fixture
def page(result, tmp_path):
    write_html(result, tmp_path / "page.html")
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def without_scripts(page):
    return re.sub(r"<script.*?</script>", "", page, flags=re.S)


def test_page_has_every_method_and_section(result, page):
    text = without_scripts(page)
    for row in result["methods"]:
        assert f"<td>{row['label']}</td>" in text
    for title in (
        "Methods",
        "Frontier",
        "Search",
        "Policy",
        "Calibration",
        "Cost",
        "Splits",
        "Models and machine",
        "Samples",
    ):
        assert f"<h2>{title}</h2>" in text
    assert "1.32 [1.29, 1.35]" in text
    assert "1.32x faster &amp; better than random &lt;b&gt;hand-off&lt;/b&gt;" in text
    assert "<td>large</td><td>50.00</td><td>52.00</td><td>77.70</td>" in text
    assert text.index("<td>entropy</td><td>+1.25</td>") < text.index("<td>margin</td><td>-0.2</td>")
    assert "0.081; tuned minus random: -0.033 [-0.045, -0.020] (95% confidence)" in text
    assert "0.0312" in text
    assert "0.97 times its predicted speedup and 1.10 times its predicted loss" in text
    assert "Brier score 0.0625 (of the best constant: 0.0811), mean distance from the diagonal 0.0123" in text


def test_page_escapes_what_others_wrote(page):
    assert HOSTILE not in page
    assert "Write &lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert " &lt;b&gt;&amp;</span>" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; so on</div>" in page


def test_tokens_name_their_writer_and_risk(page):
    text = without_scripts(page)
    assert 'title="little, risk 0.120, threshold 0.310">Once</span>' in text
    assert 'title="big, risk 0.900, threshold 0.310">' in text
    assert 'title="big">\n.</span>' in text


def test_page_loads_nothing_from_elsewhere(page):
    """plotly's "cdn" is an empty page offline; what its library could load (map tiles) the content policy forbids."""
    tags = re.findall(r"<[a-z]+\b[^<>]*>", without_scripts(page)) + re.findall(r"<script\b[^>]*>", page)
    assert not [tag for tag in tags if re.search(r"""\b(src|href|srcset|action|data)\s*=|url\(|@import""", tag)]
    assert not re.search(r"https?://", without_scripts(page))
    assert "default-src 'none'" in page
    assert len(page) < 3e6
    packed, *rest = re.findall(r'<script type="text/plain" id="plotly">([^<]+)</script>', page)
    assert not rest and b"plotly.js v" in gzip.decompress(b64decode(packed))
    assert page.count('<div class="chart"') == page.count('<script type="application/json">') >= 2


@pytest.mark.parametrize(("ratio", "said"), [(1.2, False), (0.85, False), (1.3, True), (0.7, True)])
def test_a_timing_table_that_live_runs_contradict_is_called_wrong(result, tmp_path, ratio, said):
    write_html(result | {"live_over_table": ratio}, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert (f"the large model took {ratio} times" in page or f"took {ratio}0 times" in page) == said


def test_what_a_run_does_not_have_is_left_out(result, tmp_path):
    path = tmp_path / "page.html"
    for key in ("comparison", "calibration"):
        del result[key]
    write_html(result, path)
    text = without_scripts(path.read_text())
    assert not any(f"<h2>{title}</h2>" in text for title in ("Calibration", "Certificate", "Predicted Pareto front"))
    assert "tuned minus random" not in text
    result["policy"]["weights"] = None
    write_html(result, path)
    assert "<th>weight</th>" not in path.read_text()
    assert "features: entropy, margin" in path.read_text()


def test_a_failed_write_leaves_the_old_page(result, tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("old")

    def full(*args):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="disk full"):
        write_html(result, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
