"""llama.cpp, through xllamacpp: its drafts on the real pair have our lengths, round by round."""

import json

import pytest
from engine_comparison import NEW, REAL, Comparison, Round, chats
from export_specimens import exported

from decoding.models.defaults import DRAFTER, target_source
from policies import Rule
from train.baselines.xllamacpp_server import server

pytestmark = REAL
LENGTH = 8


def asked(engine, ids, tokenizer):
    """(answer, rounds): the engine counts its drafts with every token that it sends."""
    heard = []
    request = {"prompt": ids, "max_tokens": NEW, "temperature": 0.0, "stream": True, "cache_prompt": False}
    engine.handle_completions(request | {"timings_per_token": True}, heard.append)
    text = "".join(part["choices"][0]["text"] for part in heard)
    answer, rounds, before = tokenizer(text, add_special_tokens=False)["input_ids"], [], (0, 0)
    counts = [part["timings"] for part in heard]
    end = 0
    for timing in counts:
        drafted, accepted = now = timing.get("draft_n", 0), timing.get("draft_n_accepted", 0)
        written = timing["predicted_n"]
        if written > end and written > 1:
            rounds.append(Round(written - 1, drafted - before[0], accepted - before[1]))
            end, before = written + rounds[-1].accepted, now
    assert counts[-1]["predicted_n"] - len(answer) in (0, 1)  # an EOS is counted and is no text
    return answer, rounds


@pytest.mark.parametrize("policy", [Rule("top10", 0.4, "<="), Rule.never()], ids=["threshold", "length"])
def test_drafts_have_our_lengths(policy, pair, tmp_path):
    pytest.importorskip("xllamacpp", reason="pip install 'two-model-decoding[llamacpp]'")
    folder = exported(policy, "llama.cpp", tmp_path, role="stop", length=LENGTH, draft=str(DRAFTER))
    told = json.loads((folder / "xllamacpp.json").read_bytes())["speculative"]["draft"]
    engine = server(target_source(), 512, 1, told["mparams"]["path"], told["n_max"], told["p_min"])
    found = Comparison()
    for ids in chats(pair[1].tokenizer):
        answer, rounds = asked(engine, ids, pair[1].tokenizer)
        found.add(pair, ids, answer, rounds, policy, LENGTH)
    print(found.describe())
    assert found.rounds > 40
    assert found.explained(score=0.005, logit=0.05)
    assert len(found.differences) <= 0.1 * found.rounds
    assert len(found.lengths) > (3 if policy.kind == "rule" else 0)
