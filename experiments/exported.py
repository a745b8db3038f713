"""Speed of llama.cpp and OpenVINO GenAI with an exported stop, with their own defaults, and without speculation.

    python -m policies.export runs/NAME/policy.json --to llama.cpp --role stop --length 8 --output out/llama.cpp
    python -m policies.export runs/NAME/policy.json --to openvino --role stop --output out/openvino
    python experiments/exported.py out/llama.cpp out/openvino

Every engine answers the same prompts in three ways, in turns: without speculation (``alone``), with the draft model and
the engine's own defaults (``default``), and with the draft model and the exported settings (``exported``). The table
holds medians of tokens per second over prompts, paired ratios with 95 % bootstrap intervals, and how many texts are the
same: all three ways write the large model's greedy text, except at near-ties.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from train.common.cli import attempt


@dataclass
class ExportedSpeed:
    """Speed of other engines: without speculation, with their own defaults, with exported settings."""

    folders: Positional[tuple[Path, ...]]
    """folders that `python -m policies.export --to llama.cpp` or `--to openvino` wrote"""
    limit: int = 24
    """prompts, spread over their families"""
    max_new_tokens: int = 64
    repeats: int = 3
    large: str | None = None
    """.gguf of the large model (default: SmolLM2-135M-Instruct)"""
    small: str | None = None
    """.gguf of the small model (default: the drafter in the repository)"""
    prompts: str | None = None
    """.jsonl with `prompt` or `messages`, .txt with a prompt a line, or a `datasets` name (default: embedded)"""
    threads: int | None = None
    """CPU threads (default: torch's choice)"""
    output: Path = Path("runs/exported/default")
    """folder of rows.jsonl, settings.json, result.json and the converted models"""


def main(argv: list[str] | None = None) -> int:
    """0 when it is done, 2 after one sentence about wrong input, 130 when it was stopped."""
    import tyro

    config = tyro.cli(ExportedSpeed, args=argv, description=__doc__)
    from experiments.exported_engines.measurement import run

    return attempt("exported", lambda: run(config), config.output)


if __name__ == "__main__":
    sys.exit(main())
