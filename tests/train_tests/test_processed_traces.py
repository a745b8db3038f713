"""The settings that a large model ships with: its own text costs 0, and traces, replay and live runs see alike."""

import numpy as np
import pytest
import torch
from processed_logits import with_settings
from tiny_models import nudged
from tiny_runs import toy_pair, toy_prompts

from decoding import Autoregressive, Backoff, Speculative, generate
from policies import Random, Rule, feature_columns, history_for, token_classes
from policies.features.table import WINDOW
from train.quality.guarded_regret import score
from train.quality.metric import QualityMetric
from train.replay.speculative import Replay
from train.traces.collect_drafts import collect_drafts
from train.traces.collect_handoff import trajectory
from train.traces.draft_traces import read_drafts
from train.traces.handoff_traces import FEATURE_COLUMNS

NEW = 20
prompts = toy_prompts(8)
SETTINGS = {
    "penalty": {"repetition_penalty": 1.4},
    "n-grams": {"no_repeat_ngram_size": 2, "suppress_tokens": [5, 9, 11]},
    "lengths": {"min_new_tokens": 8, "forced_eos_token_id": 6},
}
each = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)


def pair(settings):
    small, large = toy_pair()
    return small, with_settings(large, settings, [2, 30])


def written(decoder, prompt, **options):
    result = generate(decoder, torch.tensor([prompt.ids]), max_new_tokens=NEW, **options)
    n = int(result.lengths)
    return result.sequences[0, len(prompt.ids) :][:n].tolist(), result.writers[0, :n].tolist()


@each
def test_the_large_models_own_text_scores_0(settings):
    _, large = pair(settings)
    metric, plain = QualityMetric(large, budget=NEW), 0.0
    for prompt in prompts:
        answer, _ = written(Autoregressive(large), prompt)
        assert metric(prompt, answer, answer)[:3] == (0.0, 0.0, 0.0)
        with_settings(large, {}, [2, 30])
        plain += QualityMetric(large, budget=NEW)(prompt, answer, answer)[0]
        with_settings(large, settings, [2, 30])
    assert plain > 0.05  # regret of other logits would have charged for it


def test_a_token_that_is_ruled_out_costs_as_much_as_any_can():
    _, large = pair({"suppress_tokens": [7]})
    (one,) = score(large, [prompts[0].ids], [[7, 8]])
    assert one.regret[0] == pytest.approx(100) and np.isfinite(one.logprob).all()
    assert 0.5 <= QualityMetric(large)(prompts[0], [7, 8], [8, 8])[0] <= 1


class Recorder:
    """Hands off as ``Random`` does, and keeps every feature that it could have seen."""

    history, window = history_for(FEATURE_COLUMNS), WINDOW

    def __init__(self, classes):
        self.policy, self.classes, self.seen = Random(0.4), classes, []

    def observe(self, step):
        return feature_columns(step, self.history)

    def __call__(self, step):
        self.seen.append(feature_columns(step, FEATURE_COLUMNS, self.history, self.classes)[0])
        return self.policy(step)


@each
def test_logged_features_are_what_a_policy_saw_live(settings):
    small, large = pair(settings)
    classes = token_classes(large.tokenizer)
    for seed, prompt in enumerate(prompts[:4]):
        recorder = Recorder(classes)
        answer, writers = written(Backoff([small, large], recorder), prompt, seed=seed)
        rows = trajectory(small, large, prompt, answer, writers, answer, classes, budget=NEW)
        live = torch.stack(recorder.seen).numpy()
        for j, name in enumerate(FEATURE_COLUMNS):
            np.testing.assert_allclose(rows[name], live[:, j], rtol=1e-3, atol=2e-5, equal_nan=True, err_msg=name)
        assert np.where(np.array(writers) == 1, rows["large_token"], rows["small_token"]).tolist() == answer


@each
def test_replayed_drafts_are_the_live_ones(settings, tmp_path):
    _, large = pair(settings)
    small = nudged(large, 0.06)
    small.tokenizer = large.tokenizer
    collect_drafts(small, large, prompts, 4, tmp_path / "drafts", NEW)
    replay, accepted = Replay(read_drafts(tmp_path / "drafts")), 0
    for stop in (None, Rule("entropy", 2.0)):
        run = replay(stop, 4, False, NEW)
        for i, prompt in enumerate(prompts):
            ids = torch.tensor([prompt.ids])
            result = generate(Speculative([small, large], 4, stop), ids, max_new_tokens=NEW, seed=0)
            assert result.counts["calls"] == [run.draft_calls[i], run.target_calls[i]]
            assert [int(result.lengths), int((result.writers == 0).sum())] == [run.tokens[i], run.accepted[i]]
            accepted += run.accepted[i]
    assert accepted > 40
