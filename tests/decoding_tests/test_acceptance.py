"""Acceptance rules: each against its paper in plain Python, noise integrated out; lossless ones against the target."""

import math
from itertools import product

import acceptance_references as reference
import pytest
import torch
from acceptance_laws import TOP, World, ask, law

from decoding import (
    Block,
    Cascade,
    Divergence,
    Exact,
    FixedRatio,
    Joint,
    Learned,
    Lenient,
    Rollback,
    Sampling,
    Typical,
)
from decoding.acceptance.draft_block import last_true
from decoding.acceptance.lossless import Strict
from decoding.acceptance.rules import RULES
from policies import Rule

pytestmark = pytest.mark.sampled

SAMPLING = {
    "greedy": Sampling(),
    "T=1": Sampling(1.0),
    "T=0.8 k=2": Sampling(0.8, top_k=2),
    "T=1.4 p=0.8": Sampling(1.4, top_p=0.8),
}
LOSSLESS = [name for name, rule in RULES.items() if rule.lossless]
WORLD, LACKING = World(vocab=3, k=3, seed=4), World(vocab=3, k=3, seed=4)
for logits in LACKING.draft.values():
    logits[1] = -torch.inf
each_sampling = pytest.mark.parametrize("sampling", SAMPLING.values(), ids=SAMPLING)
UNSURE = Rule("top1", 0.55, "<=")

CASES = {
    "Exact": (Exact(), reference.exact),
    "Block": (Block(), reference.block),
    **{
        f"Lenient {lenience}": (Lenient(lenience), lambda c, v=lenience: reference.lenient(c, v))
        for lenience in (0.1, 0.6, 1.0)
    },
    **{
        f"Typical {e} {d}": (Typical(e, d), lambda c, e=e, d=d: reference.typical(c, e, d))
        for e, d in ((0.09, 0.3), (0.4, 0.9), (0.2, 0.1))
    },
    **{f"Rollback {v}": (Rollback(v), lambda c, v=v: reference.rollback(c, v)) for v in (0.5, 1.5, 5.0)},
    **{
        f"Divergence {kind} {filtered}": (
            Divergence(kind, v, filtered),
            lambda c, kind=kind, v=v, f=filtered: reference.divergence(c, kind, v, f),
        )
        for kind, v in (("kl", 0.5), ("reverse_kl", 0.5), ("js", 0.1), ("tv", 0.3))
        for filtered in (False, True)
    },
    **{
        f"Cascade {rule} {alpha}": (Cascade(rule, alpha), lambda c, r=rule, a=alpha: reference.cascade(c, r, a))
        for rule, alpha in (
            ("chow", 0.4),
            ("diff", 0.1),
            ("opt", 0.5),
            ("token_v1", 0.2),
            ("token_v2", 0.2),
            ("token_v3", 0.3),
            ("token_v3", 0.8),
        )
    },
    **{
        f"Joint {tau} {filtered}": (Joint(tau, filtered), lambda c, t=tau, f=filtered: reference.joint(c, t, f))
        for tau in (0.1, 0.5, 1.3)
        for filtered in (False, True)
    },
    **{
        f"FixedRatio {tau} {filtered}": (
            FixedRatio(tau, filtered),
            lambda c, t=tau, f=filtered: reference.fixed_ratio(c, t, f),
        )
        for tau in (0.1, 0.5, 1.3)
        for filtered in (False, True)
    },
    "Learned": (Learned(UNSURE), lambda c: reference.judged(c, lambda i: max(c.Q[i]) > 0.55)),
    "Learned by KL": (
        Learned(Rule("kl", 0.5)),
        lambda c: reference.judged(c, lambda i: reference.kl(c.Q[i], c.P[i]) < 0.5),
    ),
}
ALL = {name: rule for name, (rule, _) in CASES.items()}


def test_every_rule_of_the_registry_is_examined():
    assert {type(rule).__name__ for rule in ALL.values()} == set(RULES)
    assert {Divergence, Joint} <= {type(rule) for rule in ALL.values()}


def case_of(world, tokens, sampling):
    """What the references read of a block: filtered probabilities by transformers, plain ones by softmax."""
    prefixes = [tokens[:i] for i in range(len(tokens) + 1)]
    sides = [world.probabilities(side, s) for s in (sampling, Sampling(1.0)) for side in ("target", "draft")]
    return reference.Case(tokens, *([side[x] for x in prefixes] for side in sides), greedy=sampling.greedy)


def expected(world, rows, sampling, paper):
    """[rows, k + 1, vocab] what the paper says."""
    table = torch.zeros(len(rows), world.k + 1, world.vocab, dtype=torch.float64)
    for row, (tokens, n) in zip(table, rows, strict=True):
        for a, (probability, after) in enumerate(paper(case_of(world, tokens, sampling))):
            assert a <= n
            row[a] = probability * torch.tensor(after, dtype=torch.float64)
    return table


@each_sampling
@pytest.mark.parametrize("name", CASES)
def test_a_rule_is_its_paper(name, sampling):
    rule, paper = CASES[name]
    draft, rows = WORLD.blocks(sampling)
    # What is left of a mixture that is nearly q is a small difference of float32.
    tolerance = 3e-5 if isinstance(rule, Cascade) else 3e-6
    torch.testing.assert_close(law(rule, draft), expected(WORLD, rows, sampling, paper), atol=tolerance, rtol=0)


def test_the_cases_tell_rules_apart():
    """At temperature 1 every rule keeps some tokens and not all, and no lossy one is Exact here by accident."""
    draft, _ = WORLD.blocks(Sampling(1.0))
    exact = law(Exact(), draft)
    for name, rule in ALL.items():
        table = law(rule, draft)
        kept = (table.sum(2) * torch.arange(table.shape[1])).sum() / draft.lengths.sum()
        assert 0.02 < kept < 0.995, name
        assert ((table - exact).abs().max() < 1e-4) == (name in ("Exact", "Lenient 1.0")), name


def written(world, sampling, rule, certain=False):
    """[vocab ** (k + 1)] law of what is written: the draft, what is kept, the next token, and then the target."""
    total = torch.zeros((world.vocab,) * (world.k + 1), dtype=torch.float64)
    draft, rows = world.blocks(sampling, certain)
    table = law(rule, draft)
    for (tokens, n), outcomes in zip(rows, table, strict=True):
        if n < world.k:
            continue
        drafted = (
            1 / world.vocab**n if certain else world.chance("draft", tokens, sampling)
        )  # any way to choose a certain draft
        for a, after in product(range(n + 1), range(world.vocab)):
            text = (*tokens[:a], after)
            if outcomes[a, after] > 0:
                total[text] += drafted * outcomes[a, after] * continuation(world, text, sampling)
    return total


def continuation(world, text, sampling):
    """Law of what the target writes after ``text``, up to k + 1 tokens in all."""
    rest = world.k + 1 - len(text)
    tails = product(range(world.vocab), repeat=rest)
    table = [world.chance("target", text + tail, sampling, len(text)) for tail in tails]
    return torch.tensor(table, dtype=torch.float64).view((world.vocab,) * rest)


def truth(world, sampling):
    return continuation(world, (), sampling)


@each_sampling
@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_rules_write_what_a_target_with_more_tokens_writes(name, sampling):
    """The draft lacks one of them."""
    difference = written(LACKING, sampling, RULES[name].load()()) - truth(LACKING, sampling)
    assert difference.abs().max() < 1e-6
    assert difference.abs().sum() < 2e-5


@each_sampling
@pytest.mark.parametrize("certain", [False, True], ids=["drawn", "certain"])
@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_rules_write_what_the_target_writes(name, sampling, certain):
    """All sequences of a block, enumerated; also when the draft leaves nothing to chance, as prompt lookup does."""
    difference = written(WORLD, sampling, RULES[name].load()(), certain) - truth(WORLD, sampling)
    assert difference.abs().max() < 1e-6
    assert difference.abs().sum() < 2e-5


class FirstFailure(Block):
    """Wrong on purpose: a prefix that fails ends the block."""

    def verify(self, draft, p, q):
        prefix = self._prefix(draft, p, q)
        return self.resample_after(draft, prefix[..., None] * p, q, draft.accept_noise < prefix[:, 1:])


class Unscaled(Block):
    """Wrong on purpose: draws from max(0, p - q) where it should be max(0, P p - q)."""

    def _residual(self, scaled, q, accepted, lengths):
        p = scaled / scaled.sum(-1, keepdim=True)
        return super()._residual(p, q, accepted, lengths)


WRONG = {
    "first failure": FirstFailure(),
    "unscaled": Unscaled(),
    **{name: rule for name, rule in ALL.items() if type(rule).__name__ not in LOSSLESS and name != "Lenient 1.0"},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_is_found_out(name):
    difference = written(WORLD, Sampling(1.0), WRONG[name]) - truth(WORLD, Sampling(1.0))
    assert difference.abs().sum() > 0.005  # a right one is wrong by less than 1e-4


@each_sampling
@pytest.mark.parametrize("name", ALL)
def test_conformance(name, sampling):
    """What every rule promises: ranges, rows apart, no state, and nothing read behind the end of a draft."""
    rule, (draft, _) = ALL[name], WORLD.blocks(sampling)
    settings = dict(vars(rule))
    generator = torch.Generator().manual_seed(1)
    noise, after = (
        torch.rand(draft.tokens.shape, generator=generator),
        torch.rand(len(draft.tokens), generator=generator),
    )
    accepted, token = ask(rule, draft, noise, after)
    assert accepted.dtype == token.dtype == torch.long
    assert accepted.shape == token.shape == draft.lengths.shape
    assert ((accepted >= 0) & (accepted <= draft.lengths)).all()
    assert ((token >= 0) & (token < WORLD.vocab)).all()
    behind = torch.arange(WORLD.k) >= draft.lengths[:, None]
    draft.tokens = torch.where(behind, 2 - draft.tokens, draft.tokens)
    draft.draft_logits = torch.where(behind[..., None], torch.randn(draft.draft_logits.shape), draft.draft_logits)
    draft.target_logits[:, 1:][behind] += torch.randn(3)
    again = ask(rule, draft, torch.where(behind, 1 - noise, noise), after)
    assert torch.equal(again[0], accepted) and torch.equal(again[1], token)
    one = [ask(rule, row(draft, i), noise[i : i + 1], after[i : i + 1]) for i in range(len(token))]
    assert torch.equal(torch.cat([a for a, _ in one]), accepted)
    assert torch.equal(torch.cat([t for _, t in one]), token)
    assert vars(rule) == settings


def row(draft, i):
    values = {
        name: getattr(draft, name)[i : i + 1] if name != "sampling" else draft.sampling
        for name in type(draft).__slots__
    }
    return type(draft)(**values)


@each_sampling
@pytest.mark.parametrize("name", ALL)
def test_the_host_waits_for_nothing(name, sampling):
    """On tensors without values, anything that reads one fails: no loop over rows, no branch on what was accepted."""
    draft, _ = WORLD.blocks(sampling)
    fields = {field: getattr(draft, field) for field in type(draft).__slots__}
    draft = type(draft)(**{field: v.to("meta") if field != "sampling" else v for field, v in fields.items()})
    accepted, token = ALL[name](draft)
    assert accepted.shape == token.shape == draft.lengths.shape


@each_sampling
@pytest.mark.parametrize("name", ALL)
def test_an_empty_draft_is_followed_by_the_target(name, sampling):
    draft, _ = WORLD.blocks(sampling)
    empty = row(draft, 0)
    for field in ("tokens", "draft_logits", "accept_noise", "policy_noise"):
        setattr(empty, field, getattr(empty, field)[:, :0])
    empty.target_logits, empty.next_noise = empty.target_logits[:, :1], torch.tensor([[0.7]])
    accepted, token = ALL[name](empty)
    assert accepted.tolist() == [0]
    assert token == sampling.draw(empty.target_logits[:, 0], torch.tensor([0.7]))


@pytest.mark.parametrize("name", ALL)
def test_masked_logits_make_no_nan(name):
    """Where both models mask a token, and where only the target does."""
    draft, _ = WORLD.blocks(Sampling(1.0))
    draft.draft_logits[..., 2] = draft.target_logits[..., 2] = -torch.inf
    draft.target_logits[:, 1, 1] = -torch.inf
    draft.tokens = draft.tokens.clamp(max=1)
    for noise in (0.0, 0.5, 0.999):
        accepted, token = ask(
            ALL[name], draft, torch.full(draft.tokens.shape, noise), torch.full((len(draft.tokens),), 0.999)
        )
        assert (draft.target_logits[torch.arange(len(token)), accepted, token] > -torch.inf).all()


def unlucky(draft):
    """The noise with which least is kept."""
    return torch.full(draft.tokens.shape, TOP), torch.zeros(len(draft.tokens))


@each_sampling
def test_a_judge_that_trusts_nothing_is_exact_and_one_that_trusts_all_keeps_all(sampling):
    draft, _ = WORLD.blocks(sampling)
    torch.testing.assert_close(law(Learned(Rule.always()), draft), law(Exact(), draft), atol=1e-6, rtol=0)
    accepted, _ = ask(
        Learned(Rule.never()), draft, torch.full(draft.tokens.shape, 0.999), torch.zeros(len(draft.tokens))
    )
    assert torch.equal(accepted, draft.lengths)


@each_sampling
def test_rules_with_a_limit_reach_it(sampling):
    """What the papers say of the ends of their ranges."""
    draft, _ = WORLD.blocks(sampling)
    exact = law(Exact(), draft)
    for same in (Lenient(1.0), Cascade("token_v3", -1e-6), Cascade("chow", -1e-6), Cascade("diff", -1.0)):
        torch.testing.assert_close(law(same, draft), exact, atol=1e-6, rtol=0)
    all_kept = (
        Rollback(1e9),
        Divergence("kl", 1e9),
        Joint(1e-30, False),
        FixedRatio(1e-30, False),
        Cascade("chow", 1.0),
    )
    for rule in all_kept:
        accepted, _ = ask(rule, draft, torch.full(draft.tokens.shape, 0.999), torch.zeros(len(draft.tokens)))
        assert torch.equal(accepted, draft.lengths), rule
    for rule in (Joint(1e9), FixedRatio(1e9)):
        assert not ask(rule, draft, torch.zeros(draft.tokens.shape), torch.zeros(len(draft.tokens)))[0].any()


def test_joint_looks_past_a_failure():
    """p / q of .4 and then 2: the first prefix fails, the second passes; a constant ratio stops at the first."""
    one = row(WORLD.blocks(Sampling(1.0))[0], 0)
    probabilities = torch.tensor([[[0.5, 0.25, 0.25], [0.4, 0.3, 0.3], [0.9, 0.05, 0.05]]])
    one.tokens, one.lengths = torch.zeros(1, 3, dtype=torch.long), torch.tensor([3])
    one.draft_logits = probabilities.log()
    one.target_logits = torch.tensor([[[0.2, 0.4, 0.4], [0.8, 0.1, 0.1], [0.3, 0.3, 0.4], [1, 1, 1.0]]]).log()
    assert Joint(0.5)(one)[0].tolist() == [2]
    assert FixedRatio(0.5)(one)[0].tolist() == [0]
    assert Joint(0.2)(one)[0].tolist() == [3]
    assert Joint(0.81)(one)[0].tolist() == [0]


def test_equal_models_pass_joint_below_one_only():
    draft, _ = WORLD.blocks(Sampling(1.0))
    draft.target_logits[:, :-1] = draft.draft_logits
    for rule in (Joint, FixedRatio):
        assert torch.equal(rule(0.999)(draft)[0], draft.lengths)
        assert not rule(1.0)(draft)[0].any()


def test_block_keeps_more_than_exact():
    draft, rows = WORLD.blocks(Sampling(1.0))
    weight = [WORLD.chance("draft", x, Sampling(1.0)) * (n == WORLD.k) for x, n in rows]
    weight = torch.tensor(weight, dtype=torch.float64)[:, None]
    exact, block = ((weight * law(rule, draft).sum(2)).sum(0).flip(0).cumsum(0) for rule in (Exact(), Block()))
    assert (block > exact - 1e-6).all()  # of every length
    assert block.sum() > exact.sum() + 0.01


def test_strict_is_exact_up_to_its_prefix():
    draft, _ = WORLD.blocks(Sampling(1.0))
    exact, lossy, strict = (law(rule, draft) for rule in (Exact(), Rollback(1.5), Strict(Rollback(1.5), 2)))
    early = draft.starts < 2
    assert early.any() and not early.all()
    assert torch.equal(strict[early], exact[early])
    assert torch.equal(strict[~early], lossy[~early])


@pytest.mark.parametrize("kind", ["kl", "js", "tv"])
def test_divergences_have_their_known_values(kind):
    """Two coins by hand: KL(q || p) = log(4/3) / 2 + log(4) / 2 - log(2); far apart: the bounds."""
    from decoding.acceptance.lossy import DIVERGENCES

    q, p = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.75, 0.25]]).log()
    by_hand = {
        "kl": 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25),
        "js": 0.5 * (0.75 * math.log(0.75 / 0.625) + 0.25 * math.log(0.25 / 0.375))
        + 0.5 * (0.5 * math.log(0.5 / 0.625) + 0.5 * math.log(0.5 / 0.375)),
        "tv": 0.25,
    }
    assert DIVERGENCES[kind](p, q).item() == pytest.approx(by_hand[kind], rel=1e-5)
    apart = torch.tensor([[0.0, -torch.inf]]), torch.tensor([[-torch.inf, 0.0]])
    bound = {"kl": math.inf, "js": math.log(2), "tv": 1.0}
    assert DIVERGENCES[kind](*apart).item() == pytest.approx(bound[kind])
    assert DIVERGENCES[kind](p, p).item() == 0


def test_furthest_and_empty():
    keep = torch.tensor([[False, True, False], [True, False, True], [False, False, False]])
    assert last_true(keep, torch.tensor([3, 2, 3])).tolist() == [2, 1, 0]
    assert last_true(keep[:, :0], torch.tensor([0, 0, 0])).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Lenient(0.0), "lenience"),
        (lambda: Lenient(1.5), "lenience"),
        (lambda: Lenient(math.nan), "lenience"),
        (lambda: Typical(1.0, 0.3), "epsilon"),
        (lambda: Typical(0.1, -1), "delta"),
        (lambda: Rollback(-0.1), "rollback"),
        (lambda: Rollback(math.nan), "rollback"),
        (lambda: Divergence("hellinger"), "hellinger.*kl"),
        (lambda: Divergence("kl", -1), "threshold"),
        (lambda: Cascade("token"), "token_v3"),
        (lambda: Cascade("opt", math.nan), "NaN"),
        (lambda: Joint(-0.1), "tau"),
        (lambda: FixedRatio(math.nan), "tau"),
        (lambda: Strict(Exact(), -1), "strict_prefix"),
        (lambda: Learned(Rule("repeated", 3)), "repeated"),
        (lambda: Learned(Rule("mean_entropy", 3)), "history"),
    ],
)
def test_bad_settings_are_refused_by_name(make, match):
    with pytest.raises(ValueError, match=match):
        make()
