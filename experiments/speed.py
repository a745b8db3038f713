"""Speed of any pair of models: transformers, llama.cpp, OpenVINO and this engine, each in a process of its own.

    python -m experiments.speed --small A.gguf --large B.gguf --prompts code.jsonl --limit 20 --max-new-tokens 128 \\
        --rows transformers transformers-assisted llama.cpp llama.cpp-draft large exact tuned:runs/NAME

Rows: transformers (generate) and transformers-assisted, in bfloat16 where that is fast, else float32; llama.cpp alone
and with the small model as its draft; openvino and openvino-draft (OpenVINO GenAI, which converts .gguf files once, in
the output folder, to weight formats of its own); this engine's large model alone; exact (speculative decoding);
tuned:RUN (the policy of a finished run, with its decoder and threshold). NAME:LENGTH fixes a draft length; without it
the fastest of several is searched, on prompts that come after the measured ones where there are enough.

A row's process loads only what the row needs and ends before the next starts. All answer the same token ids greedily.
rows.jsonl keeps every answer: a run that was stopped goes on there. A row whose process dies is named with the reason.
The loss of a tuned row is computed in a process of its own, under the large model as this engine loads it.
"""

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

from dataclasses import dataclass, field
from pathlib import Path

from decoding.cli.dtypes import DtypeOptions, Dtypes
from decoding.cli.generation_config import IgnoredSettings
from train.common.cli import command
from train.data.options import PromptOptions, Reading


@dataclass
class Speed:
    """Speed of several engines on one pair, in bounded memory."""

    rows: tuple[str, ...] = ("transformers", "transformers-assisted", "llama.cpp", "llama.cpp-draft", "large", "exact")
    """rows to measure, as above, also tuned:RUN"""
    limit: int = 20
    """prompts, spread over their families"""
    transformers_limit: int = 8
    """prompts of the rows of transformers, which are slow; their ratios are of these"""
    search_prompts: int = 2
    """prompts on which the best setting of a row is searched"""
    max_new_tokens: int = 128
    passes: int = 1
    """times that every row is measured, in a process started again"""
    baseline: str | None = None
    """row to which the ratios refer (default: llama.cpp where it is measured, else large)"""
    small: str | None = None
    """folder, hub id or .gguf of the small model (default: the drafter in the repository)"""
    large: str | None = None
    """folder, hub id or .gguf of the large model (default: SmolLM2-135M-Instruct)"""
    prompts: str | None = None
    """prompts as train/fit_policy.py takes them (default: the embedded ones)"""
    ignore_generation_config: IgnoredSettings = ""
    threads: int | None = None
    """CPU threads (default: torch's choice)"""
    output: Path = Path("runs/speed/default")
    """folder of rows.jsonl, settings.json, result.json and log.txt"""
    dtypes: Dtypes = field(default_factory=DtypeOptions)
    reading: Reading = field(default_factory=PromptOptions)


def run(config: Speed) -> dict:
    """Measure what is not measured yet and write the result. Raises InputError before any work is done."""
    from experiments.pair_speed.run import Comparison, check_settings
    from experiments.pair_speed.table import show
    from train.common import atomic, run_folder
    from train.common.cli import checking
    from train.common.progress import log_to, say

    with checking():
        check_settings(config)
        comparison = Comparison(config)
        otherwise = f"name another --output or delete {config.output}"
        run_folder.ensure_same_run(config.output / "settings.json", comparison.identity(), config, otherwise)
    with log_to(config.output / "log.txt"):
        result = comparison.measure()
        atomic.write_json(config.output / "result.json", result)
        show(result)
        say(f"written to {config.output}: rows.jsonl, result.json, log.txt")
    return result


main = command(Speed, run, __doc__, lambda config: config.output)

if __name__ == "__main__":
    raise SystemExit(main())
