"""transformers' own assisted generation drafts as long as ours when it has the exported knobs."""

import importlib.util
import json

import pytest
import torch
from export_specimens import exported
from tiny_models import eager, nudged, tiny
from transformers.generation.candidate_generator import AssistedCandidateGenerator

from decoding import Speculative, generate
from policies import Logistic, Rule
from policies.export.draft_settings import threshold

NEW = 40


@pytest.fixture(scope="module")
def pair():
    large = tiny(layers=2, seed=1, initializer_range=0.3)
    return nudged(large, 0.2), large


def ours(pair, ids, policy, length, monkeypatch):
    """(text, (drafted, accepted) of every round)"""
    rounds, plain = [], Speculative._block

    def record(self, run, rows, lengths, drafted, *rest):
        rounds.append(drafted.total)
        return plain(self, run, rows, lengths, drafted, *rest)

    monkeypatch.setattr(Speculative, "_block", record)
    decoder = Speculative(list(pair), length, stop=policy, keep_stop_token=True)
    return generate(decoder, ids, max_new_tokens=NEW, eos_token_id=()).sequences, rounds


def theirs(pair, ids, folder, monkeypatch, frozen=True):
    small, large = eager(pair[0]), eager(pair[1])
    small.generation_config.update(**json.loads((folder / "generation_config.json").read_bytes()))
    for model in (small, large):
        # transformers takes a pad token in the text for padding, and this vocabulary has no token to spare.
        model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    rounds, plain = [], AssistedCandidateGenerator.update_candidate_strategy

    def record(self, input_ids, scores, matches):
        rounds.append(scores.shape[1] - 1)
        return plain(self, input_ids, scores, matches)

    monkeypatch.setattr(AssistedCandidateGenerator, "update_candidate_strategy", record)
    if frozen:
        spec = importlib.util.spec_from_file_location("frozen_assistant", folder / "frozen_assistant.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.freeze(large)
    options = {"max_new_tokens": NEW, "do_sample": False, "assistant_model": small}
    return large.generate(ids, attention_mask=torch.ones_like(ids), **options), rounds


def logistic():
    policy = Logistic(("top1",), threshold=0.6)
    weights = {"mean": [0.4], "scale": [0.2], "coef": [-1.5]}
    policy.set_weights({k: torch.tensor(v) for k, v in weights.items()} | {"intercept": torch.tensor(0.1)})
    return policy


@pytest.mark.parametrize(
    "policy", [Rule("top1", 0.3, "<="), logistic(), Rule.never()], ids=["rule", "logistic", "never"]
)
def test_drafts_have_our_lengths_round_by_round(pair, prompts, policy, tmp_path, monkeypatch):
    ids = prompts[0][:1]
    folder = exported(policy, "transformers-config", tmp_path, role="stop", length=6)
    text, rounds = ours(pair, ids, policy, 6, monkeypatch)
    found, drafted = theirs(pair, ids, folder, monkeypatch)
    assert torch.equal(text, found)
    # After a round that leaves room for no draft transformers asks for none and has nothing to update.
    assert [length for length in rounds if length] == [length for length in drafted if length]
    assert len(set(rounds)) > (1 if policy.kind == "never" else 2)


def test_without_freezing_the_threshold_drifts(pair, prompts, tmp_path, monkeypatch):
    """What the README warns of; should transformers stop doing it, the warning is to go."""
    pytest.importorskip("sklearn")
    folder = exported(Rule("top1", 0.3, "<="), "transformers-config", tmp_path, role="stop", length=6)
    _, frozen = theirs(pair, prompts[0][:1], folder, monkeypatch)
    monkeypatch.undo()
    _, drifting = theirs(pair, prompts[0][:1], folder, monkeypatch, frozen=False)
    assert frozen != drifting
    assert "Drift" in (folder / "README.md").read_text()


def test_a_logistic_policy_of_one_probability_is_a_threshold():
    policy = logistic()
    limit = threshold(policy)
    table = torch.tensor([[limit - 1e-5], [limit + 1e-5]])
    assert (policy.score_table(table) >= policy.threshold).tolist() == [True, False]
