"""Splits: overlap groups, shares, hashes."""

from collections import Counter

import pytest

from train.data.prompts import Prompt, PromptError, load_prompts
from train.data.splits import groups, split, split_hash


def prompt(id, text, family="default", group=None):
    return Prompt(id, family, id if group is None else group, text, (1, 2), None)


def numbered(count, family="default"):
    return [prompt(f"{family}-{i}", f"question {i} of {family}", family) for i in range(count)]


def words(start, count):
    return " ".join(f"w{i}" for i in range(start, start + count))


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        ("What is two and two?", "what is  two and TWO", True),
        ("What is two and two?", "What is two and three?", False),
        (words(0, 20), words(0, 14) + " x" + words(50, 20), True),  # 7 of the smaller one's 13
        (words(0, 21), words(0, 14) + " x" + words(50, 20), False),  # 7 of 14 are not more than half
        (words(0, 9), "x " + words(0, 9) + " " + words(90, 90), True),  # the small one lies inside the large one
        ("?!", "!?", False),
    ],
)
def test_overlap_groups(first, second, together):
    a, b = groups([prompt("a", first), prompt("b", second)])
    assert (a == b) == together


def test_upstream_groups_join_and_joins_are_transitive():
    same = groups([prompt("a", "x", group="g"), prompt("b", "y", group="g"), prompt("c", "Y"), prompt("d", "z")])
    assert len({*same[:3]}) == 1
    assert same[3] not in same[:3]


def test_a_template_does_not_join_prompts_but_their_content_does():
    template = "Please read the text below with care and then answer the question in one word:"
    prompts = [prompt(str(i), f"{template} {words(100 * i, 6)}") for i in range(20)]
    twin = prompt("twin", f"{template} {words(0, 6)} or not")
    names = groups([*prompts, twin])
    assert len(set(names)) == 20
    assert names[0] == names[20]
    assert len(set(groups(prompts[:4]))) == 1  # fewer than five: nothing says that it is a template


def test_many_copies_are_not_mistaken_for_a_template():
    assert len(set(groups([prompt(str(i), words(0, 20)) for i in range(30)]))) == 1


def test_group_ids_do_not_depend_on_order():
    prompts = [prompt("a", "x", group="g"), prompt("b", "y", group="g"), prompt("c", "z")]
    assert groups(prompts) == groups(prompts[::-1])[::-1]
    assert groups([]) == []


def test_default_splits_share_no_group_and_keep_families():
    prompts = load_prompts(None, lambda text: {"input_ids": [1]})
    name = dict(zip([p.id for p in prompts], groups(prompts), strict=True))
    parts = split(prompts, seed=3)
    assert Counter(p.id for part in parts.values() for p in part) == Counter(p.id for p in prompts)
    found = [{name[p.id] for p in part} for part in parts.values()]
    assert sum(map(len, found)) == len(set().union(*found))
    sizes = Counter(p.family for p in prompts)
    for part, share in {"fit": 0.5, "tune": 0.25, "holdout": 0.25}.items():
        have = Counter(p.family for p in parts[part])
        assert all(abs(have[family] - share * sizes[family]) <= 4 for family in sizes)


def test_split_is_deterministic_in_the_seed_alone():
    prompts = numbered(40, "a") + numbered(40, "b")
    parts = split(prompts)
    ids = {part: {p.id for p in members} for part, members in parts.items()}
    assert ids == {part: {p.id for p in members} for part, members in split(prompts[::-1]).items()}
    assert ids != {part: {p.id for p in members} for part, members in split(prompts, seed=1).items()}


def test_families_of_one_prompt_do_not_all_land_in_one_split():
    prompts = [prompt(str(i), f"question {i}", family=f"family-{i}") for i in range(40)]
    assert {part: len(members) for part, members in split(prompts).items()} == {"fit": 20, "tune": 10, "holdout": 10}


def test_no_split_is_empty_even_with_a_tiny_share():
    assert [len(part) for part in split(numbered(3), {"most": 0.998, "one": 0.001, "two": 0.001}).values()] == [1, 1, 1]
    uneven = [prompt(str(i), f"question {i}", group="big" if i < 90 else str(i)) for i in range(92)]
    assert all(split(uneven).values())


def test_too_few_groups_says_how_many_and_how_many_are_needed():
    with pytest.raises(
        PromptError, match=r"9 prompts form 2 group.*3 splits \(fit, tune, holdout\) need at least 3"
    ) as error:
        split([prompt(str(i), f"question {i}", group="ab"[i % 2]) for i in range(9)])
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("shares", [{}, {"fit": 0.5}, {"fit": 1.5, "tune": -0.5}, {"fit": 1, "tune": 0}])
def test_wrong_shares(shares):
    with pytest.raises(PromptError, match="shares are.*positive and add up to 1"):
        split(numbered(9), shares)


def test_split_hash_sees_ids_and_tokens_but_not_order():
    a, b = prompt("a", "x"), prompt("b", "y")
    assert split_hash([a, b]) == split_hash([b, a])
    other = Prompt("a", "default", "a", "x", (1, 3), None)
    assert len({split_hash([a, b]), split_hash([a]), split_hash([other, b]), split_hash([])}) == 4
