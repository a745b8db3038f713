"""The samples of a report: texts as they were written, at the risk that the policy saw."""

from dataclasses import asdict
from html.parser import HTMLParser

import pytest
import torch
from result_specimens import found as specimen
from tiny_models import characters
from tiny_runs import toy_pair, toy_prompts

from decoding import Autoregressive, Backoff, generate
from decoding.state.streaming import pieces
from policies import Rule
from train.data.prompts import Prompt
from train.evaluation import live
from train.evaluation.samples import samples
from train.quality.metric import QualityMetric
from train.reports.page import write_html

NEW = 20
prompts = [
    Prompt(p.id, family, p.group, f"say {p.id} <b>", p.ids, None)
    for p, family in zip(toy_prompts(6, seed=10), "aabbbb", strict=True)
]


@pytest.fixture(scope="module")
def pair():
    return toy_pair()


@pytest.fixture
def rows(pair, tmp_path):
    """rows(policy): the text of each method to each prompt."""

    def measured(policy):
        decoders = {"large": Autoregressive(pair[1]), "tuned": Backoff(pair, policy)}
        live.measure(decoders, prompts, NEW, QualityMetric(pair[1]), tmp_path / "live.jsonl", "test", policy.describe())
        found = live.finished(tmp_path / "live.jsonl", decoders, policy.describe())
        return [found[p.id]["methods"] for p in prompts]

    return measured


def plain(tokenizer, answer):
    """The words of an answer; special tokens are shown, without a space before them."""
    return "".join(
        f"{'' if t in (0, 1, 2) else ' '}{tokenizer.convert_ids_to_tokens(t)}" for t in answer.tolist()
    ).split()


@pytest.mark.parametrize(
    "feature", ["mean_entropy", *(pytest.param(name, marks=pytest.mark.slow) for name in ("agreed", "repeated"))]
)
def test_the_risk_is_what_the_policy_saw(pair, rows, feature, monkeypatch):
    """Read again after the timing, and the same as asked for at every step."""
    policy = Rule(feature, 2.0 if feature == "mean_entropy" else 1.0)
    found = samples(pair, policy, prompts, rows(policy), count=6)
    assert len(found) == 6
    seen, score = [], Rule.score
    monkeypatch.setattr(Rule, "score", lambda self, step: seen.append(score(self, step)) or seen[-1])
    known = {p.text: p for p in prompts}
    for sample in found:
        seen.clear()
        ids = torch.tensor([known[sample.prompt].ids])
        result = generate(Backoff(pair, policy), ids, max_new_tokens=NEW)
        texts, writers, risk = zip(*sample.tokens, strict=True)
        assert list(writers) == result.writers[0].tolist()
        answer = result.sequences[0, ids.shape[1] :]
        assert "".join(texts).split() == plain(pair[1].tokenizer, answer)
        expected = torch.cat(seen)
        assert [r is None for r in risk] == expected.isnan().tolist()
        known_risk = torch.tensor([r for r in risk if r is not None])
        torch.testing.assert_close(known_risk, expected[~expected.isnan()].float(), atol=1e-4, rtol=1e-4)
        own = generate(Autoregressive(pair[1]), ids, max_new_tokens=NEW).sequences[0, ids.shape[1] :]
        assert sample.large.split() == plain(pair[1].tokenizer, own)
    assert any("<eos>" in sample.large for sample in found)


def test_one_of_each_family_and_the_shortest(pair, rows):
    policy = Rule("entropy", 2.0)
    measured = rows(policy)
    size = {p.text: len(p.ids) + len(one["tuned"]["answer"]) for p, one in zip(prompts, measured, strict=True)}
    found = samples(pair, policy, prompts, measured)
    assert sorted(sample.family for sample in found)[:2] == ["a", "b"]
    for family in "ab":
        of_family = [p.text for p in prompts if p.family == family]
        assert size[next(s.prompt for s in found if s.family == family)] == min(size[text] for text in of_family)
    assert len(found) == 3
    assert len(samples(pair, policy, prompts, measured, count=9)) == 6


class Page(HTMLParser):
    """The samples of a report: [[text, background, title] of each token] for each."""

    def __init__(self, html):
        super().__init__()
        self.open, self.spans, self.texts, self.scripts = [], [], [], []
        self.feed(html[html.index("<h2>Samples</h2>") :])
        assert self.open == ["section"] or not self.open

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.scripts += [tag] * (tag not in ("h2", "p", "div", "span"))
        attributes = dict(attributes)
        if tag == "span" and "title" in attributes:
            self.spans.append(["", attributes["style"], attributes["title"]])

    def handle_endtag(self, tag):
        if self.open:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] == "span" and self.spans and "key" not in self.open:
            self.spans[-1][0] += data


def test_the_report_shows_them(pair, rows, tmp_path):
    policy = Rule("entropy", 2.6)
    found, result = [asdict(sample) for sample in samples(pair, policy, prompts, rows(policy))], specimen()
    result["models"][0]["name"], result["policy"]["threshold"] = "<s>", 2.6
    write_html(result | {"samples": found}, tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    tokens = [token for sample in found for token in sample["tokens"]]
    assert [text for text, *_ in page.spans] == [text for text, *_ in tokens]
    for (_, style, title), (_, writer, risk) in zip(page.spans, tokens, strict=True):
        assert style == f"background:{('#d55e0033', '#0072b233')[writer]}"
        assert title == f"{('<s>', 'big')[writer]}, risk {risk:.3f}, threshold 2.600"
    assert {writer for _, writer, _ in tokens} == {0, 1}
    for sample in found:
        assert sample["prompt"] in page.texts
        assert sample["large"] in page.texts
    write_html(result | {"samples": found[:1]}, tmp_path / "less.html")
    assert page.scripts == Page((tmp_path / "less.html").read_text(encoding="utf-8")).scripts  # those of figures alone


def test_pieces_of_characters_of_several_tokens_join():
    tokenizer = characters()
    ids = tokenizer("né 🙂")["input_ids"]
    assert [piece for piece in pieces(tokenizer, ids) if piece] == list("né 🙂")
    assert len(pieces(tokenizer, ids)) == len(ids)
    assert "".join(pieces(tokenizer, ids[:-1])) == tokenizer.decode(ids[:-1])
