"""Nodes in scratch slots: read in any portions, each is a plain forward of its path; what is kept becomes the text."""

import random

import pytest
import torch
from random_trees import NODES, ROWS, random_trees
from tiny_models import KINDS, eager, mostly_slow, nudged, tiny

from decoding import MTAD, generate
from decoding.kv_cache.session import Session
from decoding.models.architectures import counts_slots

MODELS = {kind: tiny(kind, layers=2, seed=4) for kind in KINDS}
MODELS = {kind: lm for kind, lm in MODELS.items() if not counts_slots(lm.model.config)}


@pytest.mark.parametrize("kind", mostly_slow(MODELS))
@torch.no_grad()
def test_nodes_are_plain_forwards_of_their_paths(kind):
    choose, reference = random.Random(kind), eager(MODELS[kind])
    for _ in range(3):
        lengths, rows = torch.tensor([choose.randint(1, 14) for _ in range(ROWS)]), torch.arange(ROWS)
        session = MODELS[kind].session(ROWS + 1, 30)
        ids = torch.tensor([[choose.randrange(37) for _ in range(31)] for _ in range(ROWS + 1)])
        paths, tree = random_trees(choose, lengths)
        if choose.random() < 0.5:  # else texts and nodes are read at once
            session.catch_up(ids, lengths, rows)
        logits, some = [], choose.randint(1, NODES)
        for portion in (some, NODES - some)[: 1 if some == NODES else 2]:
            before = sum(part.shape[1] for part in logits)
            logits.append(session.catch_up(ids, lengths + before + portion, rows, logits_to_keep=portion, tree=tree))
        logits = torch.cat(logits, 1)
        texts = [ids[r, :length].tolist() for r, length in enumerate(lengths.tolist())]
        for r, text in enumerate(texts):
            for node, path in enumerate(paths[r]):
                whole = torch.tensor([text + ids[r, lengths[r] + torch.tensor(path)].tolist()])
                torch.testing.assert_close(logits[r, node], reference(whole).logits[0, -1], atol=2e-4, rtol=1e-4)
        # Keep some of a path, and go on: as if there had never been another text.
        longest = [max(row, key=len) for row in paths]
        deepest = max(map(len, longest))
        path = torch.tensor([row + [0] * (deepest - len(row)) for row in longest])
        counts = torch.tensor([choose.randint(0, len(row)) for row in longest])
        session.keep_path(rows, lengths, path, counts)
        assert session.read.tolist() == [*(lengths + counts).tolist(), 0]
        for r in range(ROWS):
            ids[r, : lengths[r] + counts[r]] = torch.tensor(
                texts[r] + ids[r, lengths[r] + path[r, : counts[r]]].tolist()
            )
        logits = session.catch_up(ids, lengths + counts + 2, rows, logits_to_keep=2)
        for r, length in enumerate((lengths + counts + 2).tolist()):
            expected = reference(ids[r : r + 1, :length]).logits[0, -2:]
            torch.testing.assert_close(logits[r], expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("tree", [False, True])
def test_one_cache_holds_all_beams(tree, prompts, monkeypatch):
    """A text is in memory once per model, whatever the beams, and stays where it is."""
    large = MODELS["llama"]
    forward, seen = Session._forward, {}

    def look(session, ids, *args, **options):
        out = forward(session, ids, *args, **options)
        stores = [t for layer in session.cache.layers for t in (layer.keys, layer.values)]
        seen.setdefault(id(session), set()).add(tuple((t.data_ptr(), t.shape) for t in stores))
        assert len(ids) <= 4
        return out

    monkeypatch.setattr(Session, "_forward", look)
    generate(MTAD([nudged(large), large], beams=3, tree=tree), *prompts, max_new_tokens=12, eos_token_id=())
    assert [len(places) for places in seen.values()] == [1, 1]
    for (((_, shape), *_),) in seen.values():
        assert shape[:2] == (4, 9 + 12 + 3 * 4 + 1 + 1)  # prompt, budget, nodes and one; and one for padding
