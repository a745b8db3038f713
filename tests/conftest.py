"""One torch thread a worker, and fixtures that every test file may use."""

import ctypes
import gc
import os

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # a command that a test starts leaves our modules compiled for the next
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; commands that tests start inherit it

import pytest
import torch
from filelock import FileLock

torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before those marked slow are left out
def pytest_collection_modifyitems(items):
    """Of a test marked ``sampled``: every value of every parameter once, and the other combinations as slow tests."""
    seen = set()
    for item in items:
        marked = [item.get_closest_marker(name) is not None for name in ("sampled", "slow")]
        if marked == [True, False] and hasattr(item, "callspec"):
            values = {(item.path, item.originalname, name, repr(value)) for name, value in item.callspec.params.items()}
            if values <= seen:
                item.add_marker(pytest.mark.slow)
            seen |= values


def pytest_collection_finish():
    """Let no collection of garbage look at imported modules and collected tests again: each took most of a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def give_memory_back():
    """Free the models of a file before the next one: glibc keeps what it was given, gigabytes by the end."""
    yield
    gc.collect()
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture
def prompts():
    """A ragged, left-padded batch of four: (input_ids, attention_mask)."""
    lengths, width = [9, 4, 1, 7], 9
    rows = torch.randint(3, 37, (4, width), generator=torch.Generator().manual_seed(1))
    mask = torch.stack([torch.arange(width) >= width - n for n in lengths]).long()
    return rows * mask, mask


@pytest.fixture(scope="session")
def tuned_run(tmp_path_factory, worker_id):
    """A finished run of the main job on toys, of half of their prompts, one for all workers; to be read or copied."""
    from tiny_runs import FAST, quick_timing, save_model, write_prompts

    from train.fit_policy import FitPolicy
    from train.pipeline import run

    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "tuned_run"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "default" / "result.json").exists():
            small, large = (
                save_model(folder / name, seed, layers) for name, seed, layers in (("s", 1, 1), ("l", 2, 7))
            )
            pair = {"small": small, "large": large, "prompts": write_prompts(folder / "prompts.jsonl"), "limit": 20}
            with quick_timing():
                run(FitPolicy(**pair, output=folder, quality_budget=0.95, **FAST))
    return folder / "default"
