"""Random trees of continuations, for the tests of every cache that reads them."""

import torch

from decoding.kv_cache.token_tree import TokenTree

ROWS, NODES = 3, 9


def random_trees(choose, lengths):
    """Paths of ROWS trees, [[node, ...]] for each node, level by level; and the Tree after texts of ``lengths``."""
    paths = []
    for _ in range(ROWS):
        row = []
        for node in range(NODES):
            parent = choose.choice([-1, *range(max(0, node - 4), node)])
            row.append([*(row[parent] if parent >= 0 else []), node])
        paths.append(row)
    seen = torch.zeros(ROWS, NODES, NODES, dtype=torch.bool)
    for r, row in enumerate(paths):
        for node, path in enumerate(row):
            seen[r, node, path] = True
    return paths, TokenTree(lengths, torch.tensor([[len(path) for path in row] for row in paths]), seen)
