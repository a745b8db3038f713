"""The report of a real run, as a browser shows it: on a desk and on a phone, by day and by night."""

import pytest
from browser import CHROMIUM, Browser

from train.reports.markup import page
from train.reports.plane import DARK, INK, PAPER

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; on Debian: apt-get install chromium"),
]
WIDTHS = (1280, 390)
LARGEST = 3e6  # bytes
CHARTS = """drawn.then(() => [...document.querySelectorAll('.chart')].map(chart => ({
    id: chart.id,
    points: chart.querySelectorAll('.scatterlayer path').length,
    inside: [...chart.querySelectorAll('.main-svg')].every(svg => svg.clientWidth <= chart.clientWidth),
    ink: getComputedStyle(chart.querySelector('.xtitle')).fill,
    legend: chart.querySelector('.legend').getBoundingClientRect().bottom <= chart.getBoundingClientRect().bottom + 1,
    note: chart.closest('section').querySelector('p').textContent,
})))"""
OUTSIDE = """[...document.querySelectorAll('body *')].filter(one =>
    !one.parentElement.closest('.wide') && one.getBoundingClientRect().right > %d + 1).map(one => one.outerHTML)"""


@pytest.fixture(scope="module")
def browser():
    browser = Browser()
    yield browser
    browser.close()


def rgb(colour):
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"


def faults_of(browser, width):
    """What is wrong with the page that is open: errors, and what is wider than the screen."""
    found = [str(fault) for fault in browser.faults]
    if browser.value("document.documentElement.scrollWidth") > width:
        found.append("the page scrolls sideways")
    return found + browser.value(OUTSIDE % width)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_of_a_run(browser, tuned_run, width, dark):
    path = tuned_run / "report.html"
    assert path.stat().st_size < LARGEST
    browser.open(path, width, dark)
    charts = browser.value(CHARTS)
    assert {"frontier", "trials"} <= {chart["id"] for chart in charts}
    for chart in charts:
        assert chart["points"] and chart["inside"] and chart["legend"], chart
        assert len(chart["note"].split()) >= 12, chart
        assert chart["ink"] == rgb(DARK[INK] if dark else INK)
    assert not faults_of(browser, width)
    paper = rgb(DARK[PAPER] if dark else PAPER)
    assert browser.value("getComputedStyle(document.body).backgroundColor") == paper
    assert browser.value("document.querySelectorAll('table').length") >= 4


def test_a_screen_that_turns_dark_draws_the_charts_anew(browser, tuned_run):
    browser.open(tuned_run / "report.html", 1280)
    browser.value("drawn.then(() => 0)")
    browser.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    browser.value("new Promise(done => setTimeout(done, 500))")
    assert {chart["ink"] for chart in browser.value(CHARTS)} == {rgb(DARK[INK])}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("<script>console.error('no')</script>", "'type': 'error'"),
        ("<script>nothing.here()</script>", "ReferenceError"),
        ("<p style='width: 500px'>wide</p>", "the page scrolls sideways"),
        ("<img src='https://example.org/x.png'>", "Content Security Policy"),
    ],
    ids=["console", "exception", "wide", "elsewhere"],
)
def test_what_is_wrong_with_a_page_is_seen(browser, tmp_path, body, said):
    (tmp_path / "page.html").write_text(page("broken", [body]))
    browser.open(tmp_path / "page.html", 390)
    assert said in "\n".join(faults_of(browser, 390))
