"""What transformers' own generate makes of logits, at every place of given texts."""

import copy
from itertools import product

import torch
from acceptance_laws import warped
from tiny_models import eager
from transformers import LogitsProcessor


class Forced(LogitsProcessor):
    """Writes given answers [n, new], and records the logits that it gets, which all other processors have seen."""

    def __init__(self, answers):
        self.answers, self.seen = answers, []

    def __call__(self, input_ids, scores):
        self.seen.append(scores.clone())
        wanted = self.answers[:, len(self.seen) - 1 : len(self.seen)]
        return torch.full_like(scores, -torch.inf).scatter(1, wanted, 0.0)


def with_settings(lm, settings, eos):
    """Set the generation_config of ``lm`` to ``settings``, by name, and to the ends ``eos``."""
    config = type(lm.model.generation_config)(eos_token_id=list(eos) or None, pad_token_id=0)
    for name, value in settings.items():
        setattr(config, name, value)
    lm.model.generation_config = config
    return lm


def generates(lm, prompt, budget, config=None):
    """Token ids that transformers' generate writes after one prompt, greedy, with ``lm``'s generation_config."""
    model = reference(lm, config)
    out = model.generate(torch.tensor([prompt]), max_new_tokens=budget, do_sample=False)
    return out[0, len(prompt) :].tolist()


def processed(lm, prompt, answers, budget, config=None):
    """[n, new, vocab] logits of each token of ``answers`` [n, new] in a text of at most ``budget`` tokens.

    Those after an EOS mean nothing.
    """
    answers = torch.as_tensor(answers)
    forced, model = Forced(answers), reference(lm, config)
    ids = torch.tensor([prompt]).expand(len(answers), -1)
    model.generation_config.eos_token_id = eos = model.generation_config.eos_token_id or None
    padded = torch.nn.functional.pad(answers, (0, budget - answers.shape[1]))
    forced.answers = padded
    model.generate(ids, max_new_tokens=budget, do_sample=False, logits_processor=[forced])
    seen = torch.stack(forced.seen, 1)[:, : answers.shape[1]]
    assert eos is not None or seen.shape[1] == answers.shape[1]
    return torch.nn.functional.pad(seen, (0, 0, 0, answers.shape[1] - seen.shape[1]))


def reference(lm, config=None):
    """transformers' model of the same weights, eager, with ``lm``'s generation_config or another."""
    if not hasattr(lm, "_reference"):
        lm._reference = eager(lm)
    config = lm.model.generation_config if config is None else config
    lm._reference.generation_config = copy.deepcopy(config)
    return lm._reference


def law(lm, prompt, new, sampling, change=lambda ids, logits: logits):
    """[vocab ** new] probability of every answer of ``new`` tokens, the ones after an EOS being 0."""
    vocab, eos = lm.vocab, torch.tensor(lm.model.generation_config.eos_token_id or [], dtype=torch.long)
    answers = torch.tensor(list(product(range(vocab), repeat=new)))
    logits = processed(lm, prompt, answers, new)
    logits = torch.stack([change(answers[:, :i], logits[:, i]) for i in range(new)], 1)
    table = warped(logits, sampling).nan_to_num().gather(2, answers[..., None]).squeeze(2)
    over = torch.isin(answers, eos).long().cumsum(1).roll(1, 1)
    over[:, 0] = 0
    table = torch.where(over > 0, (answers == 0).double(), table)
    return table.prod(1)


def number(answers, vocab, new):
    """[n] the index of each of ``answers`` [n, new or less] in ``law``."""
    answers = torch.nn.functional.pad(answers, (0, new - answers.shape[1]))
    return (answers * vocab ** torch.arange(answers.shape[1] - 1, -1, -1)).sum(1)


def surprise(found, truth):
    """p-value of the answers with the numbers ``found`` [n] under the law ``truth``, and whether one is impossible."""
    n = len(found)
    expected, observed = truth * n, torch.bincount(found, minlength=len(truth)).double()
    usual = expected > 8
    rest = (observed[~usual].sum() - expected[~usual].sum()).square() / expected[~usual].sum().clamp(min=1e-9)
    statistic = ((observed - expected).square() / expected)[usual].sum() + rest * bool(expected[~usual].sum() > 8)
    p = torch.special.gammaincc(usual.sum().double() / 2, statistic / 2)
    return float(p), bool((observed[truth == 0] > 0).any())
