"""MLX on the CPU: with the exported length mlx-lm drafts and keeps on the real pair what we draft and keep."""

import json

import pytest
from engine_comparison import NEW, REAL, Comparison, Round, chats, save_folder
from export_specimens import exported

from policies import Rule

pytestmark = REAL
LENGTH = 3


class Watched:
    """A model of MLX that remembers what it was asked to read."""

    def __init__(self, model):
        self.model, self.asked = model, []

    def __getattr__(self, name):
        return getattr(self.model, name)

    def __call__(self, ids, cache=None):
        self.asked.append(ids[0].tolist())
        return self.model(ids, cache=cache)


@pytest.fixture(scope="module")
def twins(pair, tmp_path_factory):
    """(small, large) in MLX, of the same weights."""
    mlx_lm = pytest.importorskip("mlx_lm", reason="pip install 'mlx[cpu]' mlx-lm")
    folder = tmp_path_factory.mktemp("folders")
    return tuple(mlx_lm.load(str(save_folder(lm, folder / str(i))))[0] for i, lm in enumerate(pair))


def asked(twins, ids, eos, settings):
    """(answer, rounds): the large model reads the token before a draft and the draft, after the prompt's parts."""
    import mlx.core as mx
    from mlx_lm.generate import speculative_generate_step

    small, large = twins[0], Watched(twins[1])
    answer, kept = [], []
    for token, _, drafted in speculative_generate_step(mx.array(ids), large, small, max_tokens=NEW, **settings):
        answer.append(int(token))
        kept.append(drafted)
        if int(token) == eos:
            break
    drafts = [read[1:] for read in large.asked[1:]]
    ends = [i for i, drafted in enumerate(kept) if not drafted]
    starts = [0, *(end + 1 for end in ends)]
    return answer, [Round(s, len(d), tokens=d) for s, d in zip(starts, drafts, strict=False)]


def test_drafts_are_ours(pair, twins, tmp_path):
    folder = exported(Rule.never(), "mlx-lm", tmp_path, role="stop", length=LENGTH)
    settings = json.loads((folder / "request.json").read_bytes())
    found = Comparison()
    for ids in chats(pair[1].tokenizer):
        answer, rounds = asked(twins, ids, pair[1].tokenizer.eos_token_id, settings)
        found.add(pair, ids, answer, rounds, Rule.never(), LENGTH)
    print(found.describe())
    assert found.rounds > 40 and found.lengths == {LENGTH}
    assert not found.differences and not found.ties
