"""ONNX Runtime GenAI on the CPU: with the exported length it drafts on the real pair what we draft."""

import json
import subprocess
import sys

import numpy as np
import pytest
from engine_comparison import NEW, REAL, Comparison, Round, chats, save_folder
from export_specimens import exported

from policies import Rule

pytestmark = REAL
LENGTH = 3


@pytest.fixture(scope="module")
def model(pair, tmp_path_factory):
    """Both models as its own builder makes them, in one configuration: the small one is ``model.draft``."""
    genai = pytest.importorskip("onnxruntime_genai")
    pytest.importorskip("onnx_ir", reason="the builder needs: pip install onnx-ir onnx")
    place = tmp_path_factory.mktemp("onnx")
    small, large = (build(lm, place, name) for lm, name in zip(pair, ("small", "large"), strict=True))
    large["model"]["decoder"]["filename"] = "large/model.onnx"
    large["model"]["draft"] = small["model"]["decoder"] | {"filename": "small/model.onnx"}
    (place / "genai_config.json").write_text(json.dumps(large))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (place / name).write_bytes((place / "large" / name).read_bytes())
    return genai.Model(str(place))


def build(lm, place, name):
    source = save_folder(lm, place / f"{name}-weights")
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", source, "-o", place / name]
    options = ["-p", "fp32", "-e", "cpu", "-c", place / "cache"]
    subprocess.run([*map(str, command), *map(str, options)], check=True, capture_output=True)
    return json.loads((place / name / "genai_config.json").read_text())


def asked(model, ids, eos, settings):
    """(answer, rounds): it counts after every token; a round's tokens then come one by one."""
    import onnxruntime_genai as genai

    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(ids) + NEW, do_sample=False)
    parameters.set_speculative_options(**settings)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array([ids], dtype=np.int32))
    answer, rounds, before = [], [], generator.get_speculative_stats()
    while not generator.is_done() and len(answer) < NEW:
        generator.generate_next_token()
        now = generator.get_speculative_stats()
        if now["rounds"] > before["rounds"]:
            assert now["rounds"] == before["rounds"] + 1
            drafted, accepted = (now[k] - before[k] for k in ("draft_tokens_proposed", "draft_tokens_accepted"))
            rounds.append(Round(len(answer), drafted, accepted))
        before = now
        answer.append(int(generator.get_next_tokens()[0]))
        if answer[-1] == eos:
            break
    return answer, rounds


def test_drafts_are_ours(pair, model, tmp_path):
    folder = exported(Rule.never(), "onnxruntime-genai", tmp_path, role="stop", length=LENGTH)
    settings = json.loads((folder / "speculative_options.json").read_bytes())
    found = Comparison()
    for ids in chats(pair[1].tokenizer):
        answer, rounds = asked(model, ids, pair[1].tokenizer.eos_token_id, settings)
        found.add(pair, ids, answer, rounds, Rule.never(), LENGTH)
    print(found.describe())
    assert found.rounds > 40 and found.lengths == {LENGTH}
    assert not found.differences and not found.ties
