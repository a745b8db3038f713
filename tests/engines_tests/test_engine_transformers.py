"""transformers on the real pair: both exports of it decide as ours, token by token and round by round."""

import importlib.util
import json

import pytest
import torch
from engine_comparison import NEW, REAL, Comparison, Round, chats
from export_specimens import exported, use_module_cache

from decoding import Backoff, generate
from policies import Logistic, Rule

pytestmark = REAL
LENGTH = 6
NAMES = ("entropy", "margin", "since_large", "agreed", "mean_entropy", "repeated")


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    use_module_cache(monkeypatch, tmp_path / "modules")


def learned():
    """Weights of a sensible sign: it hands on where the small model is unsure, was wrong, or begins a loop."""
    policy = Logistic(NAMES, threshold=0.55)
    weights = {"mean": [2.5, 2.0, 2.0, 0.5, 2.5, 1.0], "scale": [1.5, 2.0, 3.0, 0.5, 1.0, 2.0]}
    weights["coef"] = [1.2, -0.8, 0.3, -0.6, 0.4, 0.5]
    policy.set_weights({k: torch.tensor(v) for k, v in weights.items()} | {"intercept": torch.tensor(0.1)})
    return policy


def test_hand_offs_are_ours_token_by_token(pair, tmp_path):
    policy = learned()
    folder = exported(policy, "transformers", tmp_path, models=[lm.identity() for lm in pair])
    written, handed = 0, 0
    for ids in map(torch.tensor, chats(pair[1].tokenizer)):
        options = {"custom_generate": str(folder), "trust_remote_code": True, "assistant_model": pair[0].model}
        theirs = pair[1].model.generate(ids[None], max_new_tokens=NEW, return_dict_in_generate=True, **options)
        ours = generate(Backoff(list(pair), policy), ids[None], max_new_tokens=NEW)
        assert torch.equal(theirs.sequences, ours.sequences) and torch.equal(theirs.writers, ours.writers)
        written += ours.writers.shape[1]
        handed += int((ours.writers == 1).sum())
    print(f"{written} tokens, {handed} by the large model: text and writers are the same")
    assert 0.1 * written < handed < 0.9 * written


def asked(pair, ids, monkeypatch):
    """(answer, rounds) of transformers' own assisted generation."""
    from transformers.generation.candidate_generator import AssistedCandidateGenerator

    rounds, plain = [], AssistedCandidateGenerator.update_candidate_strategy

    def record(self, input_ids, scores, matches):
        drafted = scores.shape[1] - 1
        rounds.append(Round(input_ids.shape[1] - len(ids) - int(matches) - 1, drafted, int(matches)))
        return plain(self, input_ids, scores, matches)

    with monkeypatch.context() as patch:
        patch.setattr(AssistedCandidateGenerator, "update_candidate_strategy", record)
        out = pair[1].generate(
            torch.tensor([ids]), max_new_tokens=NEW, do_sample=False, assistant_model=pair[0], pad_token_id=2
        )
    return out[0, len(ids) :].tolist(), rounds


def plain(lm):
    """The same weights as transformers itself runs them."""
    model = type(lm.model)._from_config(lm.model.config, attn_implementation="sdpa").eval()
    model.load_state_dict(lm.model.state_dict())
    model.generation_config = lm.model.generation_config
    return model


@pytest.mark.parametrize("policy", [Rule("top1", 0.3, "<="), Rule.never()], ids=["threshold", "length"])
def test_drafts_have_our_lengths(policy, pair, tmp_path, monkeypatch):
    folder = exported(policy, "transformers-config", tmp_path, role="stop", length=LENGTH)
    twins = tuple(map(plain, pair))
    twins[0].generation_config.update(**json.loads((folder / "generation_config.json").read_bytes()))
    spec = importlib.util.spec_from_file_location("frozen_assistant", folder / "frozen_assistant.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.freeze(twins[1])
    found = Comparison()
    for ids in chats(pair[1].tokenizer):
        answer, rounds = asked(twins, ids, monkeypatch)
        found.add(pair, ids, answer, rounds, policy, LENGTH, keep=True)
    print(found.describe())
    assert found.rounds > 40
    assert not found.differences and not found.ties
    assert len(found.lengths) > (3 if policy.kind == "rule" else 0)
