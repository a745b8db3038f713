"""Exports for engines that need a GPU hold no key that the released package does not have.

``engine_keys.json`` was read out of those packages, and says where; it is no copy of what the exporters believe.
"""

import json
import shlex
from pathlib import Path

import pytest
from export_specimens import exported

from policies import Rule

RECORDED = json.loads(Path(__file__).with_name("engine_keys.json").read_text())


def told(target, tmp_path, file):
    return (exported(Rule.never(), target, tmp_path, role="stop", length=5, draft="small") / file).read_text()


@pytest.mark.parametrize(("target", "method"), [("vllm", "draft_model"), ("vllm-custom-class", "custom_class")])
def test_vllm_knows_the_fields_and_the_method(target, method, tmp_path):
    found = json.loads(told(target, tmp_path, "speculative_config.json"))
    assert set(found) <= set(RECORDED["vllm"]["keys"])
    assert found["method"] == method and method in RECORDED["vllm"]["methods"]


def test_sglang_knows_the_arguments_and_the_table(tmp_path):
    words = shlex.split(told("sglang", tmp_path / "a", "sglang.args"))[::2]
    assert {word.removeprefix("--").replace("-", "_") for word in words} <= set(RECORDED["sglang"]["keys"])
    (entry,) = json.loads(told("sglang", tmp_path / "b", "adaptive.json")).values()
    assert sorted(entry) == RECORDED["sglang"]["adaptive"]


def test_tensorrt_llm_knows_the_fields(tmp_path):
    found = json.loads(told("tensorrt-llm", tmp_path, "draft_target_decoding_config.json"))
    assert set(found) <= set(RECORDED["tensorrt-llm"]["keys"])
