"""Guarded regret: the loss of a text against the large model's own, without labels, in [0, 1].

Regret is the large model's best log-probability minus that of the token written. Alone it rewards loops, which predict
themselves, and early or missing stops; the guards charge for both. The large model's greedy text scores 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from decoding.acceptance.draft_block import gather_at
from decoding.models.lm import LM
from decoding.models.vocabulary import SharedIds

CAP = 5.0  # nats of regret at which a token costs 1
STOP = 1.0  # nats of regret above which an EOS, or a token instead of one, is unwanted by the large model
NGRAM = 6


@dataclass(frozen=True, slots=True)
class Score:
    """One answer as the large model reads it; arrays over its n tokens."""

    regret: np.ndarray  # [n] nats: best log-probability minus that of the token written
    logprob: np.ndarray  # [n] log-probability of the token written
    best: np.ndarray  # [n] the large model's best token


@torch.inference_mode()
def score(lm: LM, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[Score]:
    """Read each answer once with ``lm``; prompts and answers are token ids."""
    scores = []
    for prompt, answer in zip(prompts, answers, strict=True):
        logp = answer_logits(lm, prompt, answer).float().log_softmax(-1)
        written = gather_at(logp, torch.tensor(answer, device=logp.device))
        top, best = logp.max(-1)
        scores.append(Score((top - written).cpu().numpy(), written.cpu().numpy(), best.cpu().numpy()))
    return scores


def answer_logits(
    lm: LM, prompt: Sequence[int], answer: Sequence[int], shared: SharedIds | None = None
) -> torch.Tensor:
    """[n, vocab] logits with which ``lm`` would have written each of the n tokens of the answer.

    ``shared``: its part in a text of another model's ids, as ``check_compatible`` returns it.
    """
    ids = torch.tensor([[*prompt, *answer]], device=lm.device)
    ids, vocab = (ids, lm.vocab) if shared is None else (shared.readable(ids), len(shared.lacking))
    out = lm.model(input_ids=ids, use_cache=False, logits_to_keep=len(answer) + 1)
    logits = out.logits[0, :-1, :vocab]
    return logits if shared is None else shared.masked(logits)


def end_tokens(lm: LM) -> list[int]:
    """The EOS ids of ``lm``; none where it has no EOS."""
    eos = lm.model.generation_config.eos_token_id
    return [eos] if isinstance(eos, int) else list(eos or ())


def guarded_regret(score: Score, answer: Sequence[int], reference: Sequence[int], eos: Sequence[int]) -> float:
    """Mean cost of the tokens of ``answer`` (EOS included), given the large model's own answer ``reference``.

    A token costs min(regret, 5) / 5. It costs 1 where it completes a 6-gram that the answer already holds and the
    reference does not, and from the first position on at which the large model wanted an EOS. After an EOS that it did
    not want, every token missing up to the reference's length costs 1.
    """
    if not len(answer):
        return 1.0 if len(reference) else 0.0
    cost = np.minimum(score.regret, CAP) / CAP
    cost[repeats(answer, answer, reference)] = 1.0
    against = score.regret > STOP
    ends = np.isin(answer, eos)
    missed_stop = np.isin(score.best, eos) & against & ~ends
    if missed_stop.any():
        cost[int(missed_stop.argmax()) :] = 1.0
    unwanted_stop = ends[-1] and against[-1]
    missing = max(0, len(reference) - len(answer)) if unwanted_stop else 0
    return float((cost.sum() + missing) / (len(answer) + missing))


def repeats(answer: Sequence[int], candidates: Sequence[int], reference: Sequence[int]) -> np.ndarray:
    """bool [n]: ``candidates[i]`` in place of ``answer[i]`` completes a 6-gram that the answer holds before position i
    and the reference does not hold."""
    own = {tuple(reference[i : i + NGRAM]) for i in range(len(reference) - NGRAM + 1)}
    seen: set[tuple[int, ...]] = set()
    found = np.zeros(len(answer), bool)
    for i in range(NGRAM - 1, len(answer)):
        before = tuple(answer[i - NGRAM + 1 : i])
        gram = (*before, candidates[i])
        found[i] = gram in seen and gram not in own
        seen.add((*before, answer[i]))
    return found
