"""Certificates: what they promise, what they refuse, and how often the promise is broken."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from experiments.certificates import LOSSES, Certificates, passes, run
from train.certification.betting import bets, betting, binomial, largest, share_bound
from train.certify import TAIL, certify, needed, prompt_order

BUDGET, CAP = 0.02, 0.25
losses = arrays(float, st.tuples(st.integers(0, 40), st.integers(1, 4)), elements=st.floats(-1, 1, width=32))


def drawn(kind, mean, runs=2000, n=400, seed=0):
    return LOSSES[kind](np.random.default_rng(seed).random((runs, n)), mean, CAP)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """The figures of the command, as it writes them."""
    path = tmp_path_factory.mktemp("certificates") / "figures.json"
    return run(Certificates(prompts=250, output=path)), path.read_text()


@pytest.mark.parametrize("kind", LOSSES)
def test_at_the_budget_it_is_wrong_at_most_as_often_as_it_says(simulated, kind):
    false, level = simulated[0]["certified"][kind]["1.0"], simulated[0]["level"]
    assert false <= level + 3 * np.sqrt(level * (1 - level) / 2000)
    assert false > 0.02  # a test that never certifies has no level to speak of


@pytest.mark.parametrize("kind", LOSSES)
def test_better_candidates_pass_more_often(simulated, kind):
    zero, half, three, whole = simulated[0]["certified"][kind].values()
    assert zero >= half > three > whole
    assert zero > 0.75


@pytest.mark.parametrize("kind", LOSSES)
def test_the_naive_choice_breaks_what_the_certificate_keeps(simulated, kind):
    broken = simulated[0]["broken"][kind]
    assert broken["certificate_breaks"] <= simulated[0]["level"]
    assert broken["naive_breaks"] > 0.2
    assert broken["certificate_promises"] > 0.4


def test_the_command_writes_what_it_prints(simulated):
    assert '"certified"' in simulated[1]


@pytest.mark.parametrize("kind", LOSSES)
def test_simulated_and_real_certificates_agree(kind):
    found = drawn(kind, 0.75 * BUDGET, runs=40)
    real = [certify(one[:, None], BUDGET, 0.9, CAP).chosen == 0 for one in found]
    assert passes(Certificates(), found).tolist() == real
    assert 0 < sum(real) < 40


def test_a_betting_p_value_has_its_level_whatever_the_shape():
    """Ville: P(p <= a) <= a under the null, also with a few heavy losses, and for the level it was not tuned for."""
    for kind in ("graded", "signed", "beyond the cap"):
        capped = np.minimum(drawn(kind, BUDGET, n=150), CAP)
        p = betting(capped, bets(capped, CAP, 0.09), BUDGET)
        for level in (0.02, 0.09, 0.3):
            assert (p <= level).mean() <= level + 3 * np.sqrt(level * (1 - level) / 2000)


def test_hoeffding_bentkus_on_signed_differences_would_not_have_it():
    """Why betting: the usual bound for [0, 1] takes the mean of signed losses and forgets their spread."""
    rng = np.random.default_rng(0)
    n, level = 500, 0.1
    draw = rng.random((2000, n))
    mean = np.where(draw < 0.17, 1.0, np.where(draw < 0.32, -1.0, 0.0)).mean(1)  # 0.02 in truth
    low = np.clip(mean, 1e-12, BUDGET)
    kl = low * np.log(low / BUDGET) + (1 - low) * np.log((1 - low) / (1 - BUDGET))
    assert (np.exp(-n * kl) <= level).mean() > 2 * level


@pytest.mark.parametrize("kind", LOSSES)
def test_bounds_cover_the_truth(kind):
    mean, runs = 0.5 * BUDGET, 150
    found = [certify(one[:, None], BUDGET, 0.9, CAP) for one in drawn(kind, mean, runs=runs, n=120)]
    missed = np.mean([c.bound < mean for c in found])
    assert missed <= 0.09 + 3 * np.sqrt(0.09 * 0.91 / runs)
    share = {"graded": 0.0, "signed": mean / CAP + 0.1}.get(kind, mean / CAP)
    assert np.mean([c.above < share for c in found]) <= 0.01 + 3 * np.sqrt(0.01 * 0.99 / runs)
    if kind != "graded":
        assert max(c.above for c in found) > share


def test_the_first_that_fails_ends_it():
    good, bad = np.zeros(200), np.full(200, 0.1)
    found = certify(np.stack([good, bad, good], 1))
    assert found.chosen == 0
    assert len(found.pvalues) == 2
    assert found.pvalues[0] <= found.level < found.pvalues[1]
    assert found.bound == BUDGET  # the error probability went into the second test
    assert certify(good[:, None]).bound < BUDGET
    assert certify(np.stack([good, good], 1)).chosen == 1
    assert certify(good[:, None], frozen=2).bound == BUDGET
    nothing = certify(np.stack([bad, good], 1))
    assert nothing.chosen is None
    assert nothing.bound == pytest.approx(0.1, rel=0.1) and nothing.bound > 0.1
    assert len(nothing.pvalues) == 1


@settings(max_examples=60, deadline=None)
@given(losses, st.floats(0.01, 0.2), st.floats(0.5, 0.99))
def test_every_answer_is_consistent(table, budget, confidence):
    found = certify(table, budget, confidence, CAP)
    assert found.n == len(table)
    assert ((found.pvalues >= 0) & (found.pvalues <= 1)).all()
    passed = found.pvalues <= found.level
    assert passed[:-1].all()
    assert found.chosen == (passed.sum() - 1 if passed.any() else None)
    assert (found.bound <= budget) == (found.chosen is not None)
    assert ((found.uppers <= budget + 1e-9) == passed).all()
    assert 0 <= found.above <= 1
    assert found.level + found.tail_level * table.shape[1] == pytest.approx(1 - confidence)


@settings(max_examples=40, deadline=None)
@given(losses, st.randoms(use_true_random=False))
def test_rows_may_come_in_any_order_when_prompts_have_names(table, random):
    ids = [f"prompt {i}" for i in range(len(table))]
    order = list(range(len(table)))
    random.shuffle(order)
    first = certify(table, ids=ids, seed=3)
    again = certify(table[order], ids=[ids[i] for i in order], seed=3)
    assert first.pvalues.tolist() == again.pvalues.tolist()
    assert (first.chosen, first.bound, first.above) == (again.chosen, again.bound, again.above)


def test_another_seed_is_another_order():
    ids = [str(i) for i in range(50)]
    assert prompt_order(ids).tolist() != prompt_order(ids, 1).tolist()
    assert sorted(prompt_order(ids)) == list(range(50))


def test_lower_losses_are_never_worse():
    base = drawn("graded", BUDGET, runs=3, n=200).T
    p = [certify(base * scale).pvalues[0] for scale in (1.5, 1.0, 0.5, 0.0)]
    assert p == sorted(p, reverse=True)


@pytest.mark.parametrize("table", [np.zeros((0, 2)), np.zeros((1, 2)), np.zeros((1, 2), bool), np.ones((30, 1))])
def test_too_little_certifies_nothing(table):
    found = certify(table)
    assert found.chosen is None
    assert BUDGET < found.bound <= CAP
    assert 0.9 <= found.above <= 1


def test_settings_and_losses_that_make_no_sense_are_refused():
    fine = np.zeros((5, 1))
    for match, table, change in [
        ("prompt 1 under candidate 0 is nan", [[0.0], [np.nan]], {}),
        (r"is 1.5; it must be in \[-1, 1\]", [[0.0], [1.5]], {}),
        (r"is -inf; it must be in \[-1, 1\]", [[0.0], [-np.inf]], {}),
        ("losses have shape", [0.0, 0.1], {}),
        ("losses have shape", np.zeros((5, 0)), {}),
        ("the budget is 0.3", fine, {"budget": 0.3}),
        ("the budget is 0;", fine, {"budget": 0}),
        ("the budget is nan", fine, {"budget": np.nan}),
        ("the loss cap is 2", fine, {"cap": 2.0}),
        ("the confidence is 1;", fine, {"confidence": 1.0}),
        ("one per row", fine, {"ids": ["a"]}),
        ("0 candidates were frozen and 1 have losses", fine, {"frozen": 0}),
        ("one per row", fine, {"ids": ["a", "a", "b", "c", "d"]}),
    ]:
        with pytest.raises(ValueError, match=match) as error:
            certify(np.array(table), **change)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("bad", "n", "share"), [(0, 28, 0.08), (3, 60, 0.08), (10, 20, 0.5), (59, 60, 0.9)])
def test_the_binomial_is_exact(bad, n, share):
    from math import comb

    exact = sum(comb(n, i) * share**i * (1 - share) ** (n - i) for i in range(bad + 1))
    assert binomial(bad, n, share) == pytest.approx(exact)
    bound = share_bound(bad, n, 0.1)
    assert binomial(bad, n, bound) == pytest.approx(0.1)
    assert binomial(bad, n, bound + 1e-6) < 0.1


def test_edges_of_the_binomial_and_of_bounds():
    assert (binomial(5, 5, 0.2), binomial(0, 0, 0.5), binomial(0, 5, 0.0), binomial(0, 5, 1.0)) == (1, 1, 1, 0)
    assert share_bound(0, 0, 0.1) == 1
    assert share_bound(4, 4, 0.1) == 1
    assert largest(lambda m: 0.0, 0.1, 1.0) == 0
    assert certify(np.full((5000, 1), -0.5)).bound == 0  # below 0 it says "at most 0"


def test_needed_prompts_are_enough_and_fewer_are_not():
    for part in (0.0, 0.5):
        n = needed(true_loss=part * BUDGET)
        gap = CAP - part * BUDGET
        variance = part * BUDGET * gap
        rare, usual = variance / (variance + gap**2), part * BUDGET - variance / gap
        for count, enough in ((n, True), (int(0.6 * n), False)):
            found = np.where(np.random.default_rng(7).random((1000, count)) < rare, CAP, usual)
            share = passes(Certificates(), found).mean()
            assert (share > 0.74) == enough, (part, count, share)
    assert needed(true_loss=0.99 * BUDGET) is None
    assert needed(true_loss=-0.1) <= needed(true_loss=0.0)


def test_what_can_never_be_certified_is_said():
    with pytest.raises(ValueError, match="below the budget"):
        needed(true_loss=0.02)


def test_the_tail_pays_for_every_candidate():
    table = np.zeros((100, 4))
    found = certify(table)
    assert found.tail_level == pytest.approx(TAIL * 0.1 / 4)
    assert found.above == pytest.approx(1 - found.tail_level ** (1 / 100))
    assert found.above > certify(table[:, :1]).above
