"""What an exported setting does to another engine's speed: tokens per second of llama.cpp and OpenVINO GenAI.

    python -m policies.export runs/NAME/policy.json --to llama.cpp --role stop --length 8 --output out/llama.cpp
    python -m policies.export runs/NAME/policy.json --to openvino --role stop --output out/openvino
    python experiments/exported.py out/llama.cpp out/openvino

Every engine writes the same prompts three ways, in turns: without speculation (``alone``), with the draft model and the
engine's own defaults (``default``), and with the draft model and what was exported (``exported``). Printed are medians
of tokens per second over prompts, and paired ratios with 95 % bootstrap intervals. All three write the large model's
greedy text, but for near-ties; how many texts are the same is printed too.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from train.common.cli import attempt


@dataclass
class Exported:
    """Default, exported and no speculation, in the engines that the folders were exported for."""

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
    """0 when it is done, 2 after one sentence about what was wrong with the input, 130 when it was stopped."""
    import tyro

    config = tyro.cli(Exported, args=argv, description=__doc__)
    from experiments.exported_engines.measurement import run

    return attempt("exported", lambda: run(config), config.output)


if __name__ == "__main__":
    sys.exit(main())
