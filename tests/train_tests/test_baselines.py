"""llama.cpp in a process of its own, on a made-up xllamacpp: what it is told, what it answers, how it ends."""

import os
import sys
from types import SimpleNamespace

import pytest
from tiny_runs import toy_pair, toy_prompts

from decoding import Backoff
from decoding.cost.costs import ModelCosts
from policies import Rule
from train.baselines.subprocess_engine import EngineEnded, SubprocessEngine
from train.baselines.xllamacpp_server import XllamacppServer, server
from train.common.job import Job
from train.common.settings import FitPolicy
from train.evaluation import holdout
from train.quality.metric import QualityMetric
from train.search.goal import Goal


class Anything(SimpleNamespace):
    """Every attribute that is asked for is there."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, Anything())
        return getattr(self, name)


@pytest.mark.parametrize("draft", [None, "small.gguf"])
def test_llama_cpp_is_told_to_draft(monkeypatch, draft):
    """Without a type a draft is loaded and never asked; its threads are ours too."""
    engine = SimpleNamespace(CommonParams=Anything, common_speculative_type=Anything(), Server=lambda given: given)
    kind = engine.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE
    monkeypatch.setitem(sys.modules, "xllamacpp", engine)
    given = server("large.gguf", 99, 2, draft, 3)
    assert (given.model.path, given.n_ctx) == ("large.gguf", 99)
    drafting = given.speculative.draft
    if draft is None:
        assert not isinstance(given.speculative.types, list)
    else:
        assert given.speculative.types == [kind]
        assert (drafting.mparams.path, drafting.n_max, drafting.n_min, drafting.p_min) == (draft, 3, 0, 0.0)
        assert drafting.cpuparams.n_threads == given.cpuparams.n_threads == 2


ENGINE = """
class Anything:
    def __getattr__(self, name):
        setattr(self, name, Anything())
        return getattr(self, name)

CommonParams = Anything

class Server:
    def __init__(self, given):
        self.path = given.model.path
    def handle_completions(self, request):
        if request["max_tokens"] == 13:
            raise SystemExit
        text = f"{self.path} {request['prompt']} {request['temperature']}"
        return {"choices": [{"text": text, "finish_reason": "stop" if request["max_tokens"] > 5 else "length"}]}
"""


def test_llama_cpp_answers_from_a_process_of_its_own(monkeypatch, tmp_path):
    """Files of the user's working folder that are named like our packages are not run."""
    (tmp_path / "xllamacpp.py").write_text(ENGINE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    working = tmp_path / "working"
    working.mkdir()
    for name in ("train", "json"):
        (working / f"{name}.py").write_text(f"raise SystemExit('{name}.py of the working folder was run')")
    monkeypatch.chdir(working)

    class Words:
        eos_token_id = 2

        def __call__(self, text, **options):
            return {"input_ids": [text]}

    engine = XllamacppServer("a.gguf", Words(), 99)
    answer, seconds = engine.answer((4, 5), 9)
    assert answer == ["a.gguf [4, 5] 0.0", 2] and seconds >= 0
    assert engine.answer((4,), 5)[0] == ["a.gguf [4] 0.0"]
    with pytest.raises(RuntimeError, match="llama.cpp's process has ended"):
        engine.answer((4,), 13)
    assert engine.process.wait(20) == 0


class Dying(SubprocessEngine):
    """An engine that answers ``left`` prompts, the one to warm up among them."""

    def __init__(self, left):
        self.left = left

    def answer(self, prompt, max_new_tokens):
        self.left -= 1
        if self.left < 0:
            raise EngineEnded("llama.cpp's process has ended")
        return [5, 6], 0.1


@pytest.mark.parametrize("left", [0, 3])
def test_the_death_of_llama_cpp_costs_a_row_of_the_table_and_not_the_job(left, monkeypatch, tmp_path, capsys):
    small, large = toy_pair()
    splits = {"fit": [], "tune": [], "holdout": toy_prompts(4)}
    cost = ModelCosts(({1: 1.0, 4: 1.05}, {1: 10.0, 4: 10.5}))
    settings = FitPolicy(max_new_tokens=4)
    job = Job(settings, Goal(speedup=1.3), tmp_path, small, large, splits, cost, QualityMetric(large))
    dying = {"llamacpp": holdout.Contender("large model alone in llama.cpp", Dying(left))}
    monkeypatch.setattr(holdout, "_llama_cpp", lambda job: dying)
    tuned = {"tuned": holdout.Contender("tuned", Backoff([small, large], Rule.always()))}
    found = holdout.measure(job, holdout.controls(job) | tuned, Rule.always(), "")
    assert [row.key for row in found.methods] == ["large", "small", "tuned"] and len(found.rows) == 4
    assert "the table has no row of llama.cpp: llama.cpp's process has ended" in " ".join(
        capsys.readouterr().out.split()
    )


def test_an_answer_of_llama_cpp_that_is_none_is_named(monkeypatch):
    monkeypatch.setattr(XllamacppServer, "ask", lambda *_: ({"error": {"message": "too long"}}, 0.1))
    engine = XllamacppServer.__new__(XllamacppServer)
    with pytest.raises(EngineEnded, match="llama.cpp gave no answer but .*too long"):
        engine.answer((4,), 5)
