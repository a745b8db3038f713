"""Guarded regret: how much worse a text is than the large model's own, without labels, in [0, 1].

Regret (the large model's best log-probability minus that of the token written) alone rewards loops, which predict
themselves, and early or missing stops; the guards charge for them. The large model's greedy text scores 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from decoding.models.lm import LM

CAP = 5.0
"""nats of regret at which a token costs 1"""
STOP = 1.0
"""nats of regret beyond which going on, or stopping, goes against the large model"""
NGRAM = 6


@dataclass(frozen=True, slots=True)
class Score:
    """One answer under the large model; arrays over its n tokens."""

    regret: np.ndarray
    """[n] nats: best log-probability minus that of the token written"""
    logprob: np.ndarray
    """[n] log-probability of the token written"""
    best: np.ndarray
    """[n] the large model's best token"""


@torch.inference_mode()
def score(lm: LM, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[Score]:
    """Read each answer once with ``lm``; prompts and answers are token ids."""
    scores = []
    for prompt, answer in zip(prompts, answers, strict=True):
        logp = answer_logits(lm, prompt, answer).float().log_softmax(-1)
        written = logp.gather(1, torch.tensor(answer, device=logp.device)[:, None]).squeeze(1)
        top, best = logp.max(-1)
        scores.append(Score((top - written).cpu().numpy(), written.cpu().numpy(), best.cpu().numpy()))
    return scores


def answer_logits(lm: LM, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
    """[n, vocab] logits with which ``lm`` would have written each of the n tokens of the answer."""
    ids = torch.tensor([[*prompt, *answer]], device=lm.device)
    out = lm.model(input_ids=ids, use_cache=False, logits_to_keep=len(answer) + 1)
    return out.logits[0, :-1, : lm.vocab]


def end_tokens(lm: LM) -> list[int]:
    """Ids with which ``lm`` ends an answer."""
    eos = lm.model.generation_config.eos_token_id
    return [eos] if isinstance(eos, int) else list(eos or ())


def guarded_regret(score: Score, answer: Sequence[int], reference: Sequence[int], eos: Sequence[int]) -> float:
    """Mean cost of the tokens of ``answer`` (EOS included), given the large model's own answer ``reference``.

    A token costs min(regret, 5) / 5. It costs 1 when it completes a 6-gram that the answer already holds and the
    reference does not, or when it comes at or after a stop that the large model wanted. After a stop that it did not
    want, every token missing up to the reference's length costs 1.
    """
    if not len(answer):
        return 1.0 if len(reference) else 0.0
    cost = np.minimum(score.regret, CAP) / CAP
    cost[repeats(answer, answer, reference)] = 1.0
    against = score.regret > STOP
    ended_itself = np.isin(answer, eos)
    wanted = np.isin(score.best, eos) & against & ~ended_itself
    if wanted.any():
        cost[int(wanted.argmax()) :] = 1.0
    unwanted_stop = ended_itself[-1] and against[-1]
    missing = max(0, len(reference) - len(answer)) if unwanted_stop else 0
    return float((cost.sum() + missing) / (len(answer) + missing))


def repeats(answer: Sequence[int], candidates: Sequence[int], reference: Sequence[int]) -> np.ndarray:
    """bool [n]: would ``candidates[i]`` instead of ``answer[i]`` complete a 6-gram that the answer already holds before
    position i and that is not in the reference?"""
    own = {tuple(reference[i : i + NGRAM]) for i in range(len(reference) - NGRAM + 1)}
    seen: set[tuple[int, ...]] = set()
    found = np.zeros(len(answer), bool)
    for i in range(NGRAM - 1, len(answer)):
        before = tuple(answer[i - NGRAM + 1 : i])
        gram = (*before, candidates[i])
        found[i] = gram in seen and gram not in own
        seen.add((*before, answer[i]))
    return found
