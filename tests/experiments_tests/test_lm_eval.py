"""lm-evaluation-harness end to end on a local task: our texts, with batches and stop strings, and its own scores."""

import json
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from tiny_runs import ENV, ROOT, save_model

from decoding import LM, Backoff, generate
from experiments.lm_eval import main
from policies import Rule

needed = pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs the extra [lm-eval]")
STOP, NEW = "w9", 12
TASK = """
task: toy
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{target}}}}"
doc_to_choice: ["w5", "w6 w7"]
generation_kwargs: {{until: ["{stop}"], max_gen_toks: {new}, do_sample: false}}
metric_list: [{{metric: {metric}}}]
"""


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """Folders of a pair, and of two tasks on the same prompts."""
    folder = tmp_path_factory.mktemp("harness")
    rows = [{"prompt": f"w5 w{6 + i} w20 w{10 + 2 * i}"[: None if i % 2 else 6], "target": 0} for i in range(7)]
    (folder / "data.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for kind, metric in (("generate_until", "exact_match"), ("multiple_choice", "acc")):
        (folder / kind).mkdir()
        text = TASK.format(data=folder / "data.json", kind=kind, stop=STOP, new=NEW, metric=metric)
        (folder / kind / "toy.yaml").write_text(text)
    models = save_model(folder / "small", seed=1, layers=1), save_model(folder / "large", seed=2, layers=2)
    return folder, models, [row["prompt"] for row in rows]


def results(folder, model, arguments, kind, output, batch=3):
    """(texts or likelihoods of the samples in order, the scores)."""
    options = ["run", "--model", model, "--model_args", arguments, "--tasks", "toy", "--include_path", folder / kind]
    options += ["--batch_size", batch, "--output_path", output, "--log_samples", "--device", "cpu"]
    assert main([str(one) for one in options]) == 0
    (samples,) = output.rglob("samples_*.jsonl")
    (scores,) = output.rglob("results_*.json")
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    scored = json.loads(scores.read_text())["results"]["toy"]
    return [row["resps"] for row in rows], {name: value for name, value in scored.items() if "," in name}


@needed
@pytest.mark.parametrize("batch", [1, 3])
def test_texts_are_those_of_generate(toys, tmp_path, batch):
    folder, (small, large), prompts = toys
    pair = [LM.load(small), LM.load(large)]
    policy = Rule("entropy", 3.4)
    policy.save(tmp_path / "policy.json", [lm.identity() for lm in pair])
    arguments = f"small={small},large={large},policy={tmp_path / 'policy.json'}"
    texts, _ = results(folder, "two_model", arguments, "generate_until", tmp_path / "out", batch)
    tokenizer = pair[1].tokenizer
    writers = set()
    for prompt, [[text]] in zip(prompts, texts, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        written = generate(Backoff(pair, policy), ids, max_new_tokens=NEW, stop_strings=[STOP], seed=0)
        answer = tokenizer.decode(written.sequences[0, ids.shape[1] :], skip_special_tokens=True)
        assert text == answer.split(STOP)[0]
        writers |= set(written.writers[0].tolist())
    assert writers == {0, 1}


@needed
def test_always_the_large_model_scores_as_hf(toys, tmp_path):
    folder, (small, large), _ = toys
    Rule.always().save(tmp_path / "policy.json", [LM.load(path).identity() for path in (small, large)])
    ours = f"small={small},large={large},policy={tmp_path / 'policy.json'}"
    for kind in ("generate_until", "multiple_choice"):
        own, scores = results(folder, "two_model", ours, kind, tmp_path / f"own-{kind}")
        other, theirs = results(folder, "hf", f"pretrained={large},dtype=float32", kind, tmp_path / f"hf-{kind}")
        assert scores == theirs != {}
        assert kind == "multiple_choice" or own == other  # likelihoods differ in their last bits


@needed
def test_likelihoods_are_said_to_be_the_large_model_s(toys, tmp_path, monkeypatch):
    folder, (small, large), _ = toys
    said = []
    monkeypatch.setattr("experiments.harness_model.logger", SimpleNamespace(warning=said.append))
    results(folder, "two_model", f"small={small},large={large}", "multiple_choice", tmp_path / "out")
    assert said == ["two_model: likelihoods are those of the large model alone, whatever decoder writes"]


@needed
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("policy=nowhere.json", "nowhere.json"),
        ("backend=llama.cpp", "leave out backend=llama.cpp"),
        ("dtype=int3", "int3"),
    ],
)
def test_wrong_options_are_one_sentence(toys, arguments, said, capfd):
    folder, *_ = toys
    options = ["run", "--model", "two_model", "--tasks", "toy", "--include_path", str(folder / "generate_until")]
    assert main([*options, "--model_args", arguments]) == 2
    assert said in capfd.readouterr().err.splitlines()[-1]


@needed
def test_settings_of_a_task_that_we_lack_are_refused():
    from experiments.harness_model import _sampling

    assert _sampling({"do_sample": False, "temperature": 0.0}).greedy
    assert _sampling({"do_sample": True, "temperature": 0.7, "top_p": 0.9}).top_p == 0.9
    with pytest.raises(ValueError, match="the task sets num_beams"):
        _sampling({"num_beams": 4})


def test_without_the_harness_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(["run"]) == 2
    error = capsys.readouterr().err
    assert "pip install -e '.[lm-eval]'" in error and error.count("\n") == 1


def test_as_a_script_it_would_hide_the_harness():
    script = [sys.executable, str(ROOT / "experiments" / "lm_eval.py"), "run"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60, env=ENV | {"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stderr) == (2, "lm_eval: start it as python -m experiments.lm_eval\n")
