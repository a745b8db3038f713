"""Drafts over a tiny vocabulary, and the distribution of what a rule keeps of them: noise integrated, not sampled."""

import math
from itertools import product

import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from decoding import Sampling
from decoding.acceptance.draft_block import DraftBlock

SAMPLING = {
    "greedy": Sampling(),
    "sampling": Sampling(temperature=0.9),
    "filtered": Sampling(temperature=1.2, top_k=9, top_p=0.9),
}
TOP = 1 - 2.0**-23
"""The largest noise there is."""


def warped(logits, sampling):
    """float64 probabilities of ``logits`` [..., vocab] by transformers' own processors; one-hot when greedy."""
    flat = logits.flatten(0, -2).double()
    if sampling.greedy:
        return torch.nn.functional.one_hot(flat.argmax(-1), flat.shape[-1]).double().view(logits.shape)
    warpers = [TemperatureLogitsWarper(sampling.temperature)]
    warpers += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k is not None else []
    warpers += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p is not None else []
    for warper in warpers:
        flat = warper(None, flat)
    return flat.softmax(-1).view(logits.shape)


class World:
    """Two random models of texts of up to ``k`` tokens, whose logits depend on the whole text before."""

    def __init__(self, vocab=3, k=3, seed=0, apart=0.6, scale=1.5):
        generator = torch.Generator().manual_seed(seed)
        self.vocab, self.k = vocab, k
        self.target, self.draft, self.known = {}, {}, {}
        for n in range(k + 1):
            for text in product(range(vocab), repeat=n):
                common = torch.randn(vocab, generator=generator)
                self.target[text] = scale * (common + apart * torch.randn(vocab, generator=generator))
                self.draft[text] = scale * (common + apart * torch.randn(vocab, generator=generator))

    def blocks(self, sampling, certain=False):
        """A Draft of every block that the draft may write, at every length; its rows as (tokens, length).

        Behind the length of a row stands what must not matter. ``certain``: the draft leaves nothing to chance.
        """
        rows = [(x, n) for n in range(self.k + 1) for x in product(range(self.vocab), repeat=n)]
        rows = [(x, n) for x, n in rows if certain or self.chance("draft", x, sampling) > 0]
        tokens, q, p = [], [], []
        for x, n in rows:
            rest = (0,) * (self.k - n)
            tokens.append(x + rest)
            p.append([self.target[x[:i]] for i in range(n + 1)] + [torch.arange(self.vocab) * 5.0] * len(rest))
            q.append([self.draft[x[:i]] for i in range(n)] + [torch.zeros(self.vocab)] * len(rest))
        tokens = torch.tensor(tokens)
        q, p = (torch.stack([torch.stack(row) for row in side]) for side in (q, p))
        if certain:
            q = torch.full_like(q, -torch.inf).scatter_(2, tokens[..., None], 0.0)
        r = len(rows)
        draft = DraftBlock(
            tokens=tokens,
            lengths=torch.tensor([n for _, n in rows]),
            draft_logits=q,
            target_logits=p,
            sampling=sampling,
            accept_noise=torch.zeros(r, self.k),
            next_noise=torch.zeros(r, self.k + 1),
            policy_noise=torch.zeros(r, self.k),
            starts=torch.arange(r) % 5,
            before=torch.zeros(r, dtype=torch.long),
        )
        return draft, rows

    def probabilities(self, side, sampling):
        """{text: [vocab] probabilities of the next token} of "target" or "draft"."""
        if (side, sampling) not in self.known:
            table = warped(torch.stack(list(getattr(self, side).values())), sampling).tolist()
            self.known[side, sampling] = dict(zip(getattr(self, side), table, strict=True))
        return self.known[side, sampling]

    def chance(self, side, text, sampling, begin=0):
        """Probability of the tokens of ``text`` from ``begin`` on."""
        table = self.probabilities(side, sampling)
        return math.prod(table[text[:i]][text[i]] for i in range(begin, len(text)))


def ask(rule, draft, accept, after):
    """The rule's answer with this noise, [r, k] and [r]."""
    draft.accept_noise, draft.next_noise = accept, after[:, None].expand(-1, draft.tokens.shape[1] + 1)
    return rule(draft)


def law(rule, draft):
    """[r, k + 1, vocab] probability of (accepted, next token) for every row.

    A rule compares each noise with a threshold of its own, found by bisection; then every combination of passed and
    failed is weighed, and the next token's law is found by bisection too. That noise means nothing else is checked.
    """
    (r, k), vocab = draft.tokens.shape, draft.target_logits.shape[-1]
    passes = _thresholds(rule, draft)
    combinations = list(product((True, False), repeat=k))
    passed = torch.tensor(combinations)
    weights = torch.where(passed[:, None], passes, 1 - passes).prod(2)
    noise = torch.where(passed[:, None], passes / 2, (passes + 1) / 2).float().clamp(max=TOP)
    many = tiled(draft, len(combinations))
    accepted = ask(rule, many, noise.flatten(0, 1), torch.zeros(len(many.tokens)))[0].view(-1, r)
    _check(rule, draft, passes, combinations, accepted)
    result = torch.zeros(r, k + 1, vocab, dtype=torch.float64)
    for c, after in enumerate(_next(rule, many, noise.flatten(0, 1), vocab).view(-1, r, vocab)):
        result[torch.arange(r), accepted[c]] += weights[c, :, None] * after
    return result


def tiled(draft, n):
    """The rows of a draft n times over."""
    fields = {name: getattr(draft, name) for name in type(draft).__slots__}
    return type(draft)(
        **{name: v.repeat(n, *[1] * (v.dim() - 1)) if name != "sampling" else v for name, v in fields.items()}
    )


def bisected(inside, shape):
    """The largest noise for which ``inside(noise)`` holds, which holds up to there and not beyond."""
    low, high = torch.zeros(shape), torch.ones(shape)
    for _ in range(25):
        middle = (low + high) / 2
        yes = inside(middle.clamp(max=TOP))
        low, high = torch.where(yes, middle, low), torch.where(yes, high, middle)
    return low.double()


def _thresholds(rule, draft):
    """[r, k] below which each noise passes, seen wherever it makes a difference; 1 where it never does."""
    r, k = draft.tokens.shape
    settings = [(i, others) for i in range(k) for others in product((0.0, TOP), repeat=k - 1)]
    base = torch.tensor([[*others[:i], 0.0, *others[i:]] for i, others in settings]).repeat_interleave(r, 0)
    which = torch.tensor([i for i, _ in settings]).repeat_interleave(r)
    many, rows = tiled(draft, len(settings)), torch.arange(len(base))

    def answer(values):
        noise = base.clone()
        noise[rows, which] = values
        return ask(rule, many, noise, torch.zeros(len(base)))[0]

    first, last = answer(torch.zeros(len(base))), answer(torch.full((len(base),), TOP))
    found = bisected(lambda values: answer(values) == first, len(base))
    seen = torch.where(first == last, torch.nan, found).view(k, -1, r).permute(2, 0, 1)
    low, high = seen.nan_to_num(2).amin(2), seen.nan_to_num(-1).amax(2)
    assert ((high < 0) | (high - low < 1e-6)).all(), "a threshold depends on the other noise"
    return torch.where(high < 0, 1.0, high)


def _next(rule, draft, noise, vocab):
    """[r, vocab] law of the next token."""
    r = len(noise)
    many, noise = tiled(draft, vocab), noise.repeat(vocab, 1)
    most = torch.arange(vocab).repeat_interleave(r)
    reaches = lambda u: ask(rule, many, noise, u)[1] <= most  # noqa: E731
    value = bisected(reaches, r * vocab)
    value[reaches(torch.full((r * vocab,), TOP))] = 1.0
    value[~reaches(torch.zeros(r * vocab))] = 0.0
    return value.view(vocab, r).T.diff(dim=1, prepend=torch.zeros(r, 1, dtype=torch.float64))


def _check(rule, draft, passes, combinations, accepted):
    """With random noise the rule says what the thresholds say."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        noise = torch.rand(draft.tokens.shape, generator=generator)
        said = ask(rule, draft, noise, torch.rand(len(noise), generator=generator))[0]
        near = ((noise - passes).abs() < 1e-5).any(1)
        for combination, expected in zip(combinations, accepted, strict=True):
            here = ((noise < passes) == torch.tensor(combination)).all(1) & ~near
            assert torch.equal(said[here], expected[here])
