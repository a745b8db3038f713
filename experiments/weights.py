"""How much of a model's text survives fewer bits a weight: each dtype against float32, and llama.cpp beside them.

    python -m experiments.weights --model qwen2.5-coder-1.5b-instruct-q4_k_m.gguf --dtypes file int4 int8
    python -m experiments.weights --model large.gguf --draft small.gguf --dtypes file int4

The model answers prompts (greedily, in dtype auto, and these answers are the text of all that follows). Then it reads
prompts and answers in float32, and in each dtype: its distribution after every token of the answers is held against
that of float32. Printed for each dtype: the divergence KL(float32 || dtype) in nats, its mean and its 99th percentile,
and the share of positions with the same likeliest token. float32 is the file's own weights, unpacked: what was lost
before they came into the file is not counted. Where llama.cpp is installed, it reads the file too.

A --draft is asked for its likeliest token at each position, by dtype: how many are the written ones is about the share
of its drafts that would be kept. Models are loaded one after another, so that memory is that of one in float32.
"""

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from decoding.cli.dtypes import check_dtype
from decoding.cli.options import use
from train.common.cli import at_least, checking, command

LLAMA_CPP = "llama.cpp"


@dataclass
class Weights:
    """Divergence from float32 and greedy agreement, by dtype of the weights."""

    model: Path
    """a .gguf file, or a folder of a model"""
    dtypes: tuple[str, ...] = ("file", "int8", "int4")
    """of the weights, each against float32"""
    draft: Path | None = None
    """a small model of the same tokenizer"""
    prompts: Path | None = None
    """a file as of train/fit_policy.py (default: the prompts of this project)"""
    limit: int = 12
    """prompts"""
    max_new_tokens: int = 25
    """positions of each prompt"""
    llama_cpp: bool = True
    """hold llama.cpp against float32 as well, where the file is GGUF and it is installed"""
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One line: ``kl`` float [n] in nats, ``same`` bool [n], at each position."""

    name: str
    kl: np.ndarray
    same: np.ndarray


def run(config: Weights) -> list[Row]:
    """Print a line for each dtype; returns them. Raises InputError before any model is read."""
    with checking():
        at_least(config, {"limit": 1, "max_new_tokens": 1})
        check_models(config)
        use("cpu", config.threads)
    texts = write_answers(config)
    size = sum(len(answer) for _, answer in texts)
    print(f"{size} positions of {len(texts)} answers of {config.model.name}\n", flush=True)
    print(f"{'weights':<12}{'KL mean':>10}{'99 %':>10}{'same token':>12}")
    rows = []
    with TemporaryFile() as file:
        reference, at = None, 0
        for logs in read(config.model, "float32", texts):
            if reference is None:
                reference = np.memmap(file, np.float32, "w+", shape=(size, logs.shape[1]))
            reference[at : at + len(logs)] = logs
            at += len(logs)
        for name in names(config):
            rows.append(compared(name, read(config.model, name, texts), reference))
            row = rows[-1]
            tail = np.quantile(row.kl, 0.99)
            print(f"{name:<12}{row.kl.mean():>10.2g}{tail:>10.2g}{row.same.mean():>12.1%}", flush=True)
    if config.draft is not None:
        print(f"\ntokens of the answers that {config.draft.name} would have written")
        for name in ("float32", *config.dtypes):
            print(f"{name:<12}{kept(config.draft, name, texts):>10.1%}", flush=True)
    return rows


def check_models(config: Weights) -> None:
    """ValueError or OSError for what is no model or no dtype of one."""
    import torch

    from decoding.models.dtypes import settled
    from decoding.models.sources import locate

    for name in config.dtypes:
        check_dtype("--dtypes", name)
        for path in filter(None, (config.model, config.draft)):
            settled(name, locate(path), torch.device("cpu"))


def names(config: Weights) -> list[str]:
    """The dtypes, and llama.cpp where it can read the model."""
    from decoding.models.llama_library import PACKAGE

    readable = config.llama_cpp and config.model.suffix == ".gguf" and find_spec(PACKAGE) is not None
    return [*config.dtypes, *[LLAMA_CPP] * readable]


def write_answers(config: Weights) -> list[tuple[list[int], list[int]]]:
    """Ids of prompts, and of the model's greedy answers to them."""
    from train.common.generations import answers
    from train.data.prompts import load_prompts

    lm = load(config.model, "auto")
    prompts = load_prompts(config.prompts, lm.tokenizer, config.limit, 256)
    return [(list(p.ids), new) for p, new in zip(prompts, answers(lm, prompts, config.max_new_tokens), strict=True)]


def load(path: Path, dtype: str):
    """The model in a dtype of its weights, or in llama.cpp. InputError where it cannot be loaded."""
    from decoding.models.defaults import load_model

    with checking():
        if dtype == LLAMA_CPP:
            return load_model("large", str(path), backend=LLAMA_CPP)
        return load_model("large", str(path), dtype=dtype)


def read(path: Path, dtype: str, texts: list[tuple[list[int], list[int]]]) -> Iterator[np.ndarray]:
    """Log-probabilities [tokens of the answer, ids] of the token at each position of each answer, float32."""
    import torch

    lm = load(path, dtype)
    for prompt, answer in texts:
        ids = torch.tensor([prompt + answer])
        session = lm.session(1, ids.shape[1])
        end = torch.tensor([ids.shape[1] - 1])  # nothing is asked behind the last one
        with torch.inference_mode():
            logits = session.catch_up(ids, end, torch.tensor([0]), logits_to_keep=len(answer))
            yield logits[0].float().log_softmax(-1).numpy()


def compared(name: str, found: Iterator[np.ndarray], reference: np.ndarray) -> Row:
    """Divergence and agreement of ``found``, text by text, from the ``reference`` [n, ids]."""
    kl, same, at = [], [], 0
    for logs in found:
        true, at = reference[at : at + len(logs)], at + len(logs)
        kl.append((np.exp(true) * (true - logs)).sum(-1, dtype=np.float64))
        same.append(true.argmax(-1) == logs.argmax(-1))
    return Row(name, np.concatenate(kl), np.concatenate(same))


def kept(draft: Path, dtype: str, texts: list[tuple[list[int], list[int]]]) -> float:
    """The share of the answers' tokens that are the likeliest of ``draft``."""
    hits = [logs.argmax(-1) == answer for logs, (_, answer) in zip(read(draft, dtype, texts), texts, strict=True)]
    return float(np.concatenate(hits).mean())


main = command(Weights, run, __doc__)

if __name__ == "__main__":
    raise SystemExit(main())
