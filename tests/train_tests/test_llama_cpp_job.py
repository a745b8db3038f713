"""The main job on llama.cpp: the embedded pair through the whole pipeline in small sizes."""

import json
from pathlib import Path

import pytest
from tiny_runs import write_prompts

from decoding.__main__ import main as write
from train.common.load_run import load_run
from train.fit_policy import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
OPTIONS = {"max-new-tokens": 6, "trials": 6, "policy": "rule", "wandb": "disabled", "threads": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    pytest.importorskip("xllamacpp", reason="pip install -e '.[llamacpp]'")
    output = tmp_path_factory.mktemp("runs")
    prompts = write_prompts(output / "prompts.jsonl", 30)  # short: llama.cpp reads slowly on small machines
    given = {"backend": "llama.cpp", "quality-budget": 0.9, "prompts": prompts, "output": output}
    assert main([part for key, value in (OPTIONS | given).items() for part in (f"--{key}", str(value))]) == 0
    return output / "default"


def test_the_run_names_its_engine_and_loads_in_it_again(run):
    result = json.loads((run / "result.json").read_text())
    assert result["machine"]["dtype"] == "gguf"
    assert json.loads((run / "run.json").read_text())["settings"]["backend"] == "llama.cpp"
    again = load_run(run)
    assert [type(lm).__name__ for lm in (again.small, again.large)] == ["LlamaCppLM"] * 2
    assert [model["dtype"] for model in again.policy.models] == ["gguf"] * 2


def test_its_policy_runs_in_that_engine_and_is_refused_in_another(run, capfd):
    answer = ["Name two rivers.", "--max-new-tokens", "4"]
    assert write([*answer, "--policy", str(run / "policy.json")]) == 0, "in llama.cpp, as tuned"
    capfd.readouterr()
    assert write([*answer, "--policy", str(run / "policy.json"), "--backend", "torch"]) == 2
    assert "with another weights" in capfd.readouterr().err
