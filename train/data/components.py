"""Connected components that grow edge by edge, and are always known as labels."""

from collections.abc import Hashable, Iterable

import numpy as np


class Components:
    """The items 0 to ``count`` - 1, each a component of its own until it is joined.

    ``label`` [count]: equal where items are in one component. A join relabels the smaller component, so all joins
    together take count * log(count) steps at most.
    """

    def __init__(self, count: int):
        self.label = np.arange(count)
        self._members: dict[int, list[int]] = {}

    def join(self, i: int, j: int) -> None:
        """Make one component of those of the items ``i`` and ``j``."""
        labels = {int(self.label[i]), int(self.label[j])}
        if len(labels) < 2:
            return
        few, many = sorted(labels, key=lambda label: len(self._members.get(label, "1")))
        # A component of one item has no entry: it is labelled by that item.
        moved = self._members.pop(few, [few])
        self._members.setdefault(many, [many]).extend(moved)
        self.label[moved] = many

    def join_equal(self, keys: Iterable[Hashable]) -> None:
        """Join the items of equal keys; ``keys`` has one for each item."""
        first: dict[Hashable, int] = {}
        for i, key in enumerate(keys):
            self.join(i, first.setdefault(key, i))

    def all_joined(self, items: np.ndarray) -> bool:
        """Whether all ``items`` are in one component."""
        return bool((self.label[items] == self.label[items[0]]).all())
