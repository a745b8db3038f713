"""What a killed writer leaves is cleared away, and nothing else is."""

import os
import platform
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from policies.storage import tensors
from policies.storage.atomic import sweep, write
from policies.storage.documents import append_rows
from policies.storage.shards import write_shard
from train.common.progress import console, log_to, say
from train.distillation.batches import Sequence
from train.distillation.teacher import TopK

KILLED = """
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from gguf import GGUFWriter
from transformers import LlamaConfig, LlamaForCausalLM

from decoding import LM
from decoding.cost import cache
from decoding.cost.costs import ModelCosts
from policies import Rule
from policies.export.bundle import write_bundle
from train.common import atomic
from train.distillation import checkpoint
from train.distillation.gguf_file import write_gguf
from policies.storage.shards import write_shard

folder = Path(sys.argv[1])
config = LlamaConfig(vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1)
config.tie_word_embeddings = True
model, tokenizer = LlamaForCausalLM(config), folder / "tokenizer.gguf"
vocabulary = GGUFWriter(tokenizer, "llama")
vocabulary.add_string("tokenizer.ggml.model", "gpt2")
for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
    getattr(vocabulary, step)()
source = SimpleNamespace(provenance=dict)
target = SimpleNamespace(name="json", engines={}, files=lambda source: {"policy.json": b"{}"})
optimizer = torch.optim.Adam(model.parameters())
writers = [
    lambda: atomic.write_json(folder / "new.json", {}),
    lambda: Rule("entropy", 2.0).save(folder / "policy.json"),
    lambda: write_bundle(source, target, folder / "export"),
    lambda: write_shard(folder, 0, {"position": np.arange(3)}),
    lambda: checkpoint.save(folder / "checkpoint.safetensors", model, optimizer, checkpoint.Progress()),
    lambda: write_gguf(model, tokenizer, folder / "drafter.gguf", "drafter", {}),
    lambda: cache.write(folder / "cost.json", [LM(model)], ModelCosts(({1: 1.0, 2: 1.0},))),
]
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
for writer in writers:
    child = os.fork()
    if not child:
        writer()
    print(os.WTERMSIG(os.waitpid(child, 0)[1]))
"""


@pytest.fixture
def dead():
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_what_any_killed_writer_left_is_swept(tmp_path):
    (tmp_path / "new.json").write_bytes(b"old")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(int(signal.SIGKILL))] * 7, done.stderr
    assert len(list(tmp_path.rglob("*.tmp"))) == 7
    sweep(tmp_path)
    assert names(tmp_path) == {"new.json", "tokenizer.gguf", "checksums.jsonl"}  # of a shard that will be made again
    assert (tmp_path / "new.json").read_bytes() == b"old"


def test_only_files_of_dead_processes_of_this_machine_go(tmp_path, dead):
    here = platform.node()
    kept = {
        f"a.json.{here}.{os.getppid()}.tmp",  # lives
        f"a.json.{here}.1.tmp",  # lives, and may not be asked
        f"a.json.not-{here}.{dead}.tmp",  # elsewhere
        f"a.json.{dead}.tmp",  # who knows where
        f"{here}.{dead}.tmp.json",
        "mine.tmp",
    }
    for name in {*kept, f"a.json.{here}.{dead}.tmp", f"b.{here}.{10**30}.tmp"}:
        (tmp_path / name).write_bytes(b"x")
    sweep(tmp_path)
    assert names(tmp_path) == kept


def _log(path):
    with log_to(path), console.capture():
        say(5000 * "b")


WRITERS = {
    "whole": lambda path: write(path, bytes(5000)),
    "rows": lambda path: append_rows(path, [{"a": 5000 * "b"}]),
    "tensors": lambda path: tensors.write(path, {"a": torch.zeros(5000)}, {}),
    "shard": lambda path: write_shard(path.parent, 0, {"a": torch.randn(5000).numpy()}),
    "log": _log,
    "labels": lambda path: TopK(path.parent, [Sequence([3, 4, 5], 1)] * 500, 8),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_said_with_the_file(writer, tmp_path):
    """The system says it without the file, and safetensors in an error of its own, which was a traceback."""
    path, (soft, hard) = tmp_path / "file", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            WRITERS[writer](path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(tmp_path) in str(caught.value) and ".tmp" not in str(caught.value)
    assert not list(tmp_path.glob("*.tmp"))


def test_a_folder_that_is_not_there_has_nothing_to_clear(tmp_path):
    sweep(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_a_write_leaves_only_the_file(tmp_path, monkeypatch):
    write(tmp_path / "made" / "x", b"1")
    assert names(tmp_path) == {"x"}
    monkeypatch.setattr("os.replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "made" / "x", b"2")
    assert names(tmp_path) == {"x"}
    assert (tmp_path / "made" / "x").read_bytes() == b"1"
