"""Groups of prompts that belong together, and splits that never share a group."""

import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from train.data.components import Components
from train.data.overlap import Grams, join_overlapping
from train.data.prompts import Prompt, PromptError

OVERLAP = 0.5
WORD = re.compile(r"\w+")


def groups(prompts: Sequence[Prompt]) -> list[str]:
    """Group id of each prompt; prompts of one group must be in one split.

    Prompts are joined that have the same upstream `group`, the same text (case, spacing and punctuation aside), or that
    share more than half of the 8-grams of the one that has fewer. An 8-gram in at least max(5, 2 %) of a family's
    prompts is part of the family's template and does not count. The id is a hash of the members' ids in any order.
    """
    components, texts, grams = Components(len(prompts)), [], Grams()
    for prompt in prompts:
        words = WORD.findall(prompt.text.lower())
        texts.append(hashlib.blake2b((" ".join(words) if words else prompt.text).encode(), digest_size=16).digest())
        grams.add(words)
    components.join_equal(prompt.group for prompt in prompts)
    components.join_equal(texts)
    join_overlapping(components, [prompt.family for prompt in prompts], grams, OVERLAP)
    roots = components.label.tolist()
    members = defaultdict(list)
    for root, prompt in zip(roots, prompts, strict=True):
        members[root].append(prompt.id)
    names = {root: _digest(sorted(ids))[:16] for root, ids in members.items()}
    return [names[root] for root in roots]


def split(prompts: Sequence[Prompt], shares: dict[str, float] | None = None, seed: int = 0) -> dict[str, list[Prompt]]:
    """Split prompts by whole groups, each family in about the given shares, whatever the order of `prompts`.

    shares: split name -> positive share, together 1; default fit .5, tune .25, holdout .25.
    Raises PromptError for wrong shares, and when there are fewer groups than splits.
    """
    shares = {"fit": 0.5, "tune": 0.25, "holdout": 0.25} if shares is None else shares
    if not shares or not all(share > 0 for share in shares.values()) or not math.isclose(sum(shares.values()), 1):
        raise PromptError(f"shares are {shares}; they must be positive and add up to 1")
    names = groups(prompts)
    members = defaultdict(list)
    for name, prompt in zip(names, prompts, strict=True):
        members[name].append(prompt)
    if len(members) < len(shares):
        found = f"{len(prompts)} prompts form {len(members)} group(s); {len(shares)} splits ({', '.join(shares)})"
        raise PromptError(f"{found} need at least {len(shares)} groups, so give more prompts that do not overlap")
    place = _fill_empty(_assign(members, shares, seed), members, shares)
    return {part: [p for name, p in zip(names, prompts, strict=True) if place[name] == part] for part in shares}


def independent(pool: Sequence[Prompt], used: Sequence[Prompt]) -> list[Prompt]:
    """The independent prompts of ``pool``, in its order: one of each group that holds none of ``used``."""
    known = {prompt.id for prompt in used}
    others = [prompt for prompt in pool if prompt.id not in known]
    names = groups([*used, *others])
    taken, kept = set(names[: len(used)]), []
    for name, prompt in zip(names[len(used) :], others, strict=True):
        if name not in taken:
            taken.add(name)
            kept.append(prompt)
    return kept


def reserve(pool: Sequence[Prompt], used: Sequence[Prompt], count: int) -> list[Prompt]:
    """The first ``count`` of the ``independent`` prompts. Raises PromptError when there are fewer."""
    kept = independent(pool, used)
    if len(kept) < count:
        found = f"{len(kept)} groups hold no prompt of the {len(used)} in the other splits"
        raise PromptError(f"{found}, and {count} are needed; give more prompts, or a lower limit")
    return kept[:count]


def refuse_overlap(splits: dict[str, list[Prompt]]) -> None:
    """Raise PromptError when two splits share a prompt or a group of prompts."""
    prompts = [prompt for part in splits.values() for prompt in part]
    places = [name for name, part in splits.items() for _ in part]
    first: dict[str, tuple[str, str]] = {}
    for group, place, prompt in zip(groups(prompts), places, prompts, strict=True):
        known = first.setdefault(group, (place, prompt.id))
        if known[0] != place:
            found = f"prompt {prompt.id} of the split {place} is in one group with {known[1]} of {known[0]}"
            raise PromptError(f"{found}; no group of prompts may be in two splits")


def split_hash(prompts: Iterable[Prompt]) -> str:
    """SHA-256 of the prompts' ids and token ids, in any order: equal hashes mean equal splits."""
    return _digest(sorted([prompt.id, list(prompt.ids)] for prompt in prompts))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _assign(members: dict[str, list[Prompt]], shares: dict[str, float], seed: int) -> dict[str, str]:
    """Group -> split: family by family, large groups first, each to the split that lacks most there and overall."""
    families = defaultdict(list)
    for name, prompts in members.items():
        families[min(prompts, key=lambda prompt: prompt.id).family].append(name)
    place: dict[str, str] = {}
    overall: Counter = Counter()
    for family in sorted(families):
        names = sorted(families[family], key=lambda name: (-len(members[name]), _digest([seed, name])))
        goal = sum(len(members[name]) for name in names)
        total = goal + overall.total()
        have: Counter = Counter()
        for name in names:
            part = max(shares, key=lambda part: shares[part] * (goal + total) - have[part] - overall[part])
            place[name] = part
            have[part] += len(members[name])
            overall[part] += len(members[name])
    return place


def _fill_empty(place: dict[str, str], members: dict[str, list[Prompt]], shares: dict[str, float]) -> dict[str, str]:
    """Give each empty split the smallest group of the split that has the most groups."""
    for part in shares:
        if part not in place.values():
            rich = Counter(place.values()).most_common(1)[0][0]
            name = min((n for n in place if place[n] == rich), key=lambda n: (len(members[n]), n))
            place = {**place, name: part}
    return place
