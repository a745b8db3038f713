"""Guarded regret: the loss of a text against the large model's own, without labels, in [0, 1].

Regret is the large model's best log-probability minus that of the token written. Alone it rewards loops, which predict
themselves, and early or missing stops; the guards charge for both. The large model's greedy text scores 0, also under
the processors of its generation_config: regret is that of the logits that it draws from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from decoding.acceptance.draft_block import gather_at
from decoding.models import settings
from decoding.models.lm import LM
from decoding.models.vocabulary import SharedIds
from decoding.state.text_processors import TextProcessors
from train.quality.loops import TokenForms, repeats
from train.quality.prompt_sessions import PromptSessions

CAP = 5.0  # nats of regret at which a token costs 1
STOP = 1.0  # nats of regret above which an EOS, or a token instead of one, is unwanted by the large model
BANNED = 100.0  # nats of regret of a token that a processor rules out
UNBOUNDED = 2**31  # tokens: a budget at which no text ends


@dataclass(frozen=True, slots=True)
class Score:
    """One answer as the large model reads it; arrays over its n tokens."""

    regret: np.ndarray  # [n] nats: best log-probability minus that of the token written
    logprob: np.ndarray  # [n] log-probability of the token written
    best: np.ndarray  # [n] the large model's best token


@torch.inference_mode()
def score(
    lm: LM,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    budget: int | None = None,
    sessions: PromptSessions | None = None,
) -> list[Score]:
    """Read each answer once with ``lm``; prompts and answers are token ids.

    ``budget``: the most tokens that an answer could have had, where a model may be set to end (forced_eos_token_id).
    ``sessions`` of ``lm``: a prompt that one of them has read is not read again.
    """
    scores, processors = [], rules(lm, budget)
    for prompt, answer in zip(prompts, answers, strict=True):
        logits = answer_logits(lm, prompt, answer, processors=processors, sessions=sessions)
        logp = logits.float().log_softmax(-1)
        top, best = logp.max(-1)
        written = gather_at(logp, torch.tensor(answer, device=logp.device)).clamp(min=top - BANNED)
        scores.append(Score((top - written).cpu().numpy(), written.cpu().numpy(), best.cpu().numpy()))
    return scores


def rules(lm: LM, budget: int | None = None) -> TextProcessors | None:
    """The processors of texts of which ``lm`` is the last model, of at most ``budget`` tokens; None without any."""
    return settings.text_processors(lm, settings.end_tokens(lm), UNBOUNDED if budget is None else budget)


def answer_logits(
    lm: LM,
    prompt: Sequence[int],
    answer: Sequence[int],
    shared: SharedIds | None = None,
    processors: TextProcessors | None = None,
    sessions: PromptSessions | None = None,
) -> torch.Tensor:
    """[n, vocab] logits from which ``lm`` would have drawn each of the n tokens of the answer.

    ``shared``: its part in a text of another model's ids, as ``check_compatible`` returns it; ``processors``: the
    ``rules`` of that text; ``sessions`` of ``lm``, for texts of its own ids.
    """
    if sessions is not None:
        logits = sessions.logits(prompt, answer)
    else:
        ids = torch.tensor([[*prompt, *answer]], device=lm.device)
        ids, vocab = (ids, lm.vocab) if shared is None else (shared.readable(ids), len(shared.lacking))
        logits = lm.read(ids, len(answer) + 1)[0, :-1, :vocab]
        logits = logits if shared is None else shared.masked(logits)
    return logits if processors is None else processors.answer(logits, prompt, answer)


def guarded_regret(
    score: Score, answer: Sequence[int], reference: Sequence[int], eos: Sequence[int], forms: TokenForms | None
) -> float:
    """Mean cost of the tokens of ``answer`` (EOS included), given the large model's own answer ``reference``.

    A token costs min(regret, 5) / 5. It costs 1 where it goes on with a loop (``train.quality.loops``; ``forms``: the
    ``token_forms`` of the tokenizer), and from the first position on at which the large model wanted an EOS. After an
    EOS that it did not want, every token missing up to the reference's length costs 1.
    """
    if not len(answer):
        return 1.0 if len(reference) else 0.0
    cost = np.minimum(score.regret, CAP) / CAP
    cost[repeats(answer, answer, reference, forms)] = 1.0
    against = score.regret > STOP
    ends = np.isin(answer, eos)
    missed_stop = np.isin(score.best, eos) & against & ~ends
    if missed_stop.any():
        cost[int(missed_stop.argmax()) :] = 1.0
    unwanted_stop = ends[-1] and against[-1]
    missing = max(0, len(reference) - len(answer)) if unwanted_stop else 0
    return float((cost.sum() + missing) / (len(answer) + missing))
