"""llama-cpp-python on the real pair: the exported draft model drafts what we draft, by a policy of several features."""

import importlib.util

import pytest
from engine_comparison import NEW, REAL, Comparison, Round, chats, learned_stop
from export_specimens import exported

from decoding.models.defaults import DRAFTER, target_source
from policies import Rule

pytestmark = REAL
LENGTH = 6


def drafting(folder):
    """A draft model of the exported module, as its docstring says, and the rounds that it was asked for."""
    import llama_cpp

    spec = importlib.util.spec_from_file_location("policy_draft_model", folder / "policy_draft_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    small = llama_cpp.Llama(str(DRAFTER), logits_all=True, n_ctx=512, n_threads=1, verbose=False)
    drafts = []

    class Remembered(module.PolicyDraftModel):
        def __call__(self, input_ids, /, **kwargs):
            drafted = super().__call__(input_ids, **kwargs)
            drafts.append((len(input_ids), drafted.tolist()))
            return drafted

    return Remembered(small), drafts


@pytest.mark.parametrize("policy", [learned_stop(), Rule("top1", 0.3, "<=")], ids=["learned", "threshold"])
def test_drafts_are_ours(policy, pair, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    folder = exported(policy, "llama-cpp-python", tmp_path, role="stop", length=LENGTH)
    draft_model, drafts = drafting(folder)
    large = llama_cpp.Llama(target_source(), draft_model=draft_model, n_ctx=512, n_threads=1, verbose=False)
    found = Comparison()
    for ids in chats(pair[1].tokenizer):
        drafts.clear()
        answer = []
        for token in large.generate(ids, temp=0.0):
            answer.append(token)
            if len(answer) == NEW or token == pair[1].tokenizer.eos_token_id:
                break
        # That engine writes the first token before it asks for a draft.
        first = [*ids, answer[0]]
        rounds = [Round(at - len(first), len(drafted), tokens=drafted) for at, drafted in drafts]
        found.add(pair, first, answer[1:], rounds, policy, LENGTH)
    print(found.describe())
    assert found.rounds > 40
    assert found.explained(score=0.005, logit=0.5)
    assert len(found.differences) <= 0.1 * found.rounds
    assert len(found.lengths) > 3
