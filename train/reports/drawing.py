"""What a page needs to draw its charts: plotly's library, compressed to two fifths, and the script that runs it."""

import gzip
import json
from base64 import b64encode

from plotly.offline import get_plotlyjs

from train.reports.plane import DARK

SCRIPT = """
const packed = document.getElementById('plotly'), dark = matchMedia('(prefers-color-scheme: dark)'), inks = %s;
function draw(chart) {
    let text = chart.nextElementSibling.textContent;
    if (dark.matches) for (const ink in inks) text = text.replaceAll(ink, inks[ink]);
    const {data, layout, config} = JSON.parse(text);
    if (chart.clientWidth < 600) layout.height += 20 * data.length;  // there the legend has a line for each
    return Plotly.react(chart, data, layout, config);
}
async function drawAll() {
    const bytes = Uint8Array.from(atob(packed.textContent), c => c.charCodeAt(0));
    const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
    const library = document.createElement('script');
    library.textContent = await new Response(plain).text();
    document.head.append(library);
    const charts = [...document.querySelectorAll('.chart')], redraw = () => Promise.all(charts.map(draw));
    for (const chart of charts) chart.textContent = '';
    dark.addEventListener('change', redraw);
    await redraw();
}
var drawn = drawAll();
"""
"""`drawn` is a promise: tests wait for it."""
OLD_BROWSER = "Charts need a browser of 2023 or later, with JavaScript."


def library() -> str:
    """The scripts of a page, to stand at its end; without charts they do nothing."""
    packed = b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
    script = SCRIPT % json.dumps(DARK)
    return f'<script type="text/plain" id="plotly">{packed}</script><script>{script}</script>'


def chart(name: str, figure: str, config: dict) -> str:
    """A place on the page in which ``figure``, plotly's own JSON, is drawn; ``name`` is its id."""
    parts = figure.rstrip()[:-1] + f', "config": {json.dumps(config)}}}'
    data = parts.replace("<", "\\u003c")  # no text ends the script
    return f'<div class="chart" id="{name}">{OLD_BROWSER}</div><script type="application/json">{data}</script>'
