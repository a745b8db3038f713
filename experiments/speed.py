"""This engine against transformers' generate (plain, assisted, prompt lookup) and llama.cpp, on the same models.

    python experiments/speed.py                                          # the default pair, on this machine
    python experiments/speed.py --methods transformers autoregressive speculative:2 transformers-assisted:2
    python experiments/speed.py --batch 1 4 16 --limit 16                # throughput of ragged batches
    python experiments/speed.py --device cuda --random-weights llama-8b+1b --batch 1 4 16 64 --limit 64

Every method writes the greedy answers to all prompts, in turns, in an order that rotates, `--repeats` times. The table:
the median time of a token, prompt included; how many times as fast that is as `transformers` and as `autoregressive`
(medians over prompts, with paired bootstrap intervals); how many texts are the same as the first of those two writes;
the overhead (wall time / the same forwards in the same order, bare, timed beside them); and how much of the limit set
by reading the large model's weights once a token is reached. The fastest of the settings of one method is marked: it is
chosen on the prompts it is reported on, in the peers' favour as in ours.

Everything measured is kept line by line: a run that was stopped goes on where it was. Random hand-off (`backoff:RATE`)
is compared with its own limit too, 1 / (c + share of the large model), c being what one token costs the small model in
tokens of the large one. OpenVINO GenAI is no row: it needs a model that was converted beforehand.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from train.common.cli import attempt


@dataclass
class Speed:
    """Seconds per token of several engines and methods on the same models and prompts, in one run, interleaved."""

    methods: tuple[str, ...] | None = None
    """what to measure, `transformers` or `autoregressive` among it: those two, llamacpp, and with a number of drafted
    tokens speculative:4, specinfer:4 (all for one place), lookup:4, mtad:4, transformers-assisted:4,
    transformers-lookup:10, llamacpp-draft:4, or with the share handed to the large model backoff:0.5 (default: all,
    several numbers each); and ours on llama.cpp: llamacpp-autoregressive, llamacpp-speculative:2, llamacpp-backoff:0.5
    """
    limit: int = 12
    """prompts, spread over their families"""
    max_new_tokens: int = 64
    repeats: int = 3
    batch: tuple[int, ...] = (1,)
    """rows written at once; one table per size, of the methods that take batches"""
    small: str | None = None
    """folder, hub id or .gguf of the small model (default: the drafter in the repository)"""
    large: str | None = None
    """folder, hub id or .gguf of the large model (default: SmolLM2-135M-Instruct)"""
    random_weights: str | None = None
    """instead of models: the shapes `llama-8b+1b` or `tiny` with random weights, made on the device; what they write
    means nothing, so only hand-off at given rates, overhead and throughput are worth measuring"""
    prompts: str | None = None
    """.jsonl with `prompt` or `messages`, .txt with a prompt a line, or a `datasets` name (default: embedded)"""
    device: str = "cpu"
    dtype: str | None = None
    """of the large model (default: float32, of random weights bfloat16)"""
    threads: int | None = None
    """CPU threads (default: torch's choice)"""
    output: Path = Path("runs/speed/default")
    """folder of rows.jsonl (one line a prompt and repeat), settings.json, result.json and speed.png"""


def main(argv: list[str] | None = None) -> int:
    """0 when it is done, 2 after one sentence about what was wrong with the input, 130 when it was stopped."""
    import tyro

    config = tyro.cli(Speed, args=argv, description=__doc__)
    from experiments.engine_speed.measurement import run

    return attempt("speed", lambda: run(config), config.output)


if __name__ == "__main__":
    sys.exit(main())
