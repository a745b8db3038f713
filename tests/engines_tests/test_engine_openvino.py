"""OpenVINO GenAI: its drafts on the real pair have our lengths, round by round.

Its large model is another one than the file says: of 210 tensors of Q4_1 it makes 420 of 4 bits, weights and zero
points, where the file holds offsets of 16 bits. The small one, of Q8_0, is the same, and it alone decides how long a
draft is.
"""

import json

import numpy as np
import pytest
from engine_comparison import NEW, REAL, Comparison, Round, chats
from export_specimens import exported

from decoding.models.defaults import DRAFTER, target_source
from policies import Rule

pytestmark = REAL
LENGTH = 4
FLOAT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
"""Its own choice is to round the activations and the cache to 8 bits."""


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """It converts a GGUF by itself when it loads it as the large model, and leaves what it made beside the file."""
    genai = pytest.importorskip("openvino_genai")
    folders = []
    for source in (str(DRAFTER), target_source()):
        folder = tmp_path_factory.mktemp("converted")
        (folder / "model.gguf").symlink_to(source)
        genai.LLMPipeline(str(folder / "model.gguf"), "CPU", enable_save_ov_model=True)
        folders.append(folder)
    small = genai.draft_model(str(folders[0]), "CPU", **FLOAT)
    scheduler = genai.SchedulerConfig()
    scheduler.enable_prefix_caching = False
    return genai.LLMPipeline(str(folders[1]), "CPU", scheduler_config=scheduler, draft_model=small, **FLOAT)


def write(pipeline, ids, settings, new, chunks=None):
    """(tokens of every round, metrics), after ``chunks`` rounds at the latest."""
    import openvino
    import openvino_genai as genai

    class Heard(genai.StreamerBase):
        def __init__(self):
            super().__init__()
            self.rounds = []

        def write(self, tokens):
            self.rounds.append([tokens] if isinstance(tokens, int) else list(tokens))
            go_on = chunks is None or len(self.rounds) < chunks
            return genai.StreamingStatus.RUNNING if go_on else genai.StreamingStatus.STOP

        def end(self):
            pass

    config, heard = pipeline.get_generation_config(), Heard()
    for name, value in settings.items():
        setattr(config, name, value)
    config.max_new_tokens, config.do_sample, config.apply_chat_template = new, False, False
    result = pipeline.generate(openvino.Tensor(np.array([ids], dtype=np.int64)), config, heard)
    return heard.rounds, result.extended_perf_metrics


def asked(pipeline, ids, settings):
    """(answer, rounds, drafted in all): it counts drafts per call only, so every round is a call of its own too.

    The first token of a call is the large model's alone, and the first round comes after it, whose counts are there
    when the call is stopped at that token.
    """
    parts, metrics = write(pipeline, ids, settings, NEW)
    answer, rounds, end = [token for part in parts for token in part], [], 1
    for part in parts[1:]:
        _, counts = write(pipeline, ids + answer[: end - 1], settings, NEW - end + 1, chunks=1)
        accepted = counts.get_num_accepted_tokens()
        assert accepted == len(part) - 1 or end + len(part) == len(answer)  # an end of text cuts the last
        drafted = counts.get_num_draft_tokens()
        if drafted >= accepted:  # now and then it counts no drafts in a call of which it keeps some
            rounds.append(Round(end, drafted, accepted))
        end += len(part)
    return answer, rounds, metrics.get_num_draft_tokens()


@pytest.mark.parametrize("policy", [Rule("top1", 0.3, "<="), Rule.never()], ids=["threshold", "length"])
def test_drafts_have_our_lengths(policy, pair, pipeline, tmp_path):
    folder = exported(policy, "openvino", tmp_path, role="stop", length=LENGTH)
    settings = json.loads((folder / "generation_config.json").read_bytes())
    found, whole, parts = Comparison(), 0, 0
    for ids in chats(pair[1].tokenizer):
        answer, rounds, drafted = asked(pipeline, ids, settings)
        whole, parts = whole + drafted, parts + sum(r.drafted for r in rounds)
        # With a threshold it knows no longest draft.
        found.add(pair, ids, answer, rounds, policy, LENGTH if policy.kind == "never" else NEW, keep=True)
    print(found.describe(), f"drafted in all {whole}, in single rounds {parts}")
    assert found.rounds > 40
    found.ties.clear()  # not our large model: see above
    assert found.explained(score=0.005, logit=0.05)
    assert len(found.differences) <= 0.1 * found.rounds
    assert len(found.lengths) > (3 if policy.kind == "rule" else 0)
