"""A prompt that was read is not read again, and the logits after each token of an answer are the same."""

import pytest
import torch
from tiny_runs import save_model, toy_prompts

from decoding import LM
from decoding.models.memory import cache_bytes
from train.quality import prompt_sessions
from train.quality.guarded_regret import answer_logits
from train.quality.metric import QualityMetric
from train.quality.prompt_sessions import PromptSessions


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return LM.load(save_model(tmp_path_factory.mktemp("model"), seed=1, layers=2))


ONE, OTHER, THIRD = (list(prompt.ids) for prompt in toy_prompts(3))
READ = [(ONE, [5, 6, 7]), (OTHER, [9]), (ONE, [5, 8]), (ONE, [4] * 12), (THIRD, [7, 7, 7, 7]), (ONE, [5, 6, 7])]


@pytest.mark.parametrize("room", [0, 2, 9], ids="{} kept".format)
@torch.no_grad()
def test_answers_in_any_order_are_read_as_alone(lm, room, monkeypatch):
    """Also where caches are given up, and an answer is longer than expected."""
    monkeypatch.setattr(prompt_sessions, "LIMIT", room * cache_bytes(lm, 1, 12))
    sessions = PromptSessions(lm, budget=4)
    for prompt, answer in READ:
        expected = answer_logits(lm, prompt, answer)
        torch.testing.assert_close(sessions.logits(prompt, answer), expected, rtol=1e-5, atol=1e-5)
    assert len(sessions.kept) <= max(1, room)


@torch.no_grad()
def test_a_prompt_is_read_once(lm):
    sessions = PromptSessions(lm, budget=4)
    for answer in ([5, 6, 7], [5, 8], [5, 6, 7, 9]):
        sessions.logits(ONE, answer)
    ((session, _),) = sessions.kept.values()
    assert session.reads == [len(ONE) + 3, 1 + 2, 1 + 4]


def test_a_metric_keeps_them_where_its_answers_have_a_budget(lm):
    prompt = toy_prompts(1)[0]
    without, metric = QualityMetric(lm), QualityMetric(lm, budget=4)
    assert without.sessions is None
    for answer in ([5, 6, 7], [5, 8]):
        found, expected = (one(prompt, answer, [9, 9])[:3] for one in (metric, without))
        assert found == pytest.approx(expected, rel=1e-5)
    assert len(metric.sessions.kept) == 1
