"""The texts of a method to batches of prompts, with what they took and lost: a shard is one batch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from decoding import Sampling
from experiments.comparison.methods import build, parse
from policies.storage import documents
from train.common.generations import write_with_counts
from train.data.prompts import Prompt
from train.data.splits import split_hash
from train.quality.metric import QualityMetric
from train.workers.pair import Pair


class MethodShards:
    """Makes the shards of ``texts.write_texts``."""

    def __init__(self, pair: Pair, settings: dict[str, Any], decoders: dict[str, Any]):
        self.method = parse(settings["method"])
        self.decoder = build(self.method, pair.models)
        self.new, self.sampling = settings["max_new_tokens"], Sampling(**settings["sampling"])
        self.metric = pair.metric or QualityMetric.of(pair.models[-1], self.sampling, settings["seeds"], self.new)

    def __call__(self, task: dict[str, Any], path: Path) -> None:
        prompts, role = [Prompt.of(one) for one in task["prompts"]], self.method.kind.role
        texts, counts = write_with_counts(self.decoder, prompts, self.new, self.sampling, task["seed"])
        calls = [count_target_calls(role, writers) for _, writers in texts]
        drafted, verified = _draft_tokens(role, prompts, calls, counts)
        beside = task["references"] or [answer for answer, _ in texts]
        rows = []
        for prompt, (answer, writers), asked, reference in zip(prompts, texts, calls, beside, strict=True):
            judged = self.metric(prompt, answer, reference)
            rows.append({
                "prompt": split_hash([prompt]),
                "id": prompt.id,
                "text": task["text"],
                "answer": answer,
                "writers": writers,
                "target_calls": asked,
                "drafted": drafted * asked,
                "verified": verified * asked,
                "loss": judged.guarded,
                "regret": judged.regret,
                "nll": judged.nll,
            })  # fmt: skip
        documents.write(path, {"rows": rows})


def count_target_calls(role: str, writers: Sequence[int]) -> int:
    """Calls of the large model for a text, from the writers of its tokens (0: the first model, 1: the large one).

    A call that verifies a draft commits the accepted tokens and one of the large model's, unless an EOS comes first.
    """
    if role in ("large", "beam"):
        return len(writers)
    return sum(writers) + (role == "draft" and writers[-1] == 0)


def _draft_tokens(role: str, prompts: Sequence[Prompt], calls: list[int], counts: dict) -> tuple[float, float]:
    """Tokens drafted, and draft tokens read by the target, per target call of a batch."""
    if role != "draft":
        return 0.0, 0.0
    # Besides drafts, the target reads the prompts once and, in every later call, its own last token.
    own = sum(len(p.ids) for p in prompts) + sum(calls) - len(prompts)
    return counts["drafted"] / sum(calls), (counts["tokens_read"][-1] - own) / sum(calls)
