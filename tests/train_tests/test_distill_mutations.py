"""Whatever happens to a file of a distillation, reading it gives the same numbers or one sentence that names it.

As in test_mutations: last lines may be gone, a line may be there twice, or lack its checksum, or the name of it; a
label of a sequence that is not listed any more is made again.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import QUIET, mutated, put, restore
from tiny_distillation import command, make_prompts, make_target

from decoding import LM
from policies.storage import tensors
from policies.storage.documents import CHECKSUM, FileError
from train.common import run_folder
from train.common.atomic import read_rows
from train.common.rows import GenerationRow
from train.distill import cli
from train.distillation.corpus import own_generations
from train.distillation.student import existing_drafter
from train.distillation.teacher import TopK


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished distillation; its files are restored after each mutation."""
    folder = tmp_path_factory.mktemp("distilled")
    target = LM.load(make_target(folder))
    make_prompts(folder, 20)
    assert cli(command(folder, "run", 0.003, "--dtype", "float32")) == 0
    return SimpleNamespace(folder=folder / "run", target=target, sequences=own_generations(answers(folder / "run"), 64))


def answers(folder):
    return folder / "generations.jsonl"


def files_of(folder) -> list[str]:
    store = sorted(f"store/{path.name}" for path in (folder / "store").iterdir())
    return ["settings.json", "generations.jsonl", "checkpoint.safetensors", *store]


def read_again(made, name: str):
    """What is read of the file, for comparison."""
    path = made.folder / name
    if name == "settings.json":
        return run_folder.read(path)
    if name == "generations.jsonl":
        return read_rows(path, GenerationRow)
    if name == "checkpoint.safetensors":
        found, about = tensors.read(path, "stop")
        existing_drafter(str(path), made.target)
        return {key: (str(value.dtype), value.tolist()) for key, value in found.items()} | about
    store = TopK(made.folder / "store", made.sequences, 8)
    store.fill(made.target, 256)
    return store.ids.tolist(), store.logprobs.tolist()


def the_same(name: str, before, after) -> bool:
    if name == "generations.jsonl":
        return all(any(holds(row, old) for old in before) for row in after)
    if name in ("settings.json", "checkpoint.safetensors"):
        return holds(after, before)
    (ids, logprobs), (new_ids, new_logprobs) = before, after
    # Labels made again are read in another batch, which changes their last bits.
    return new_ids == ids and np.allclose(new_logprobs, logprobs, rtol=0, atol=1e-5)


def holds(row: dict, old: dict) -> bool:
    """All of the old one: where the name of the checksum was hit, it is a key that nobody knows."""
    return all(row.get(key) == value for key, value in old.items() if key != CHECKSUM)


def check_a_mutation(made, draw) -> None:
    name = draw(st.sampled_from(files_of(made.folder)))
    before, kept = read_again(made, name), {x: (made.folder / x).read_bytes() for x in files_of(made.folder)}
    form = {".json": "json", ".jsonl": "lines"}.get((made.folder / name).suffix)
    try:
        put(made.folder / name, mutated(draw, kept[name], form))
        assert the_same(name, before, read_again(made, name)), name
    except (ValueError, OSError) as error:
        assert type(error) in (FileError, ValueError), repr(error)
        assert str(made.folder) in str(error) and "\n" not in str(error) and len(str(error)) < 500, error
    finally:
        for some, content in kept.items():
            restore(made.folder / some, content)


@torch.inference_mode()
@settings(max_examples=60, deadline=None, suppress_health_check=QUIET)
@given(data=st.data())
def test_a_mutation_is_one_sentence_or_changes_no_number(made, data):
    check_a_mutation(made, data.draw)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, suppress_health_check=QUIET, database=None)
@given(data=st.data())
def test_five_hundred_mutations(made, data):
    check_a_mutation(made, data.draw)
