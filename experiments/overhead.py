"""This engine against transformers' generate (plain, assisted, prompt lookup) and llama.cpp, on the same models.

    python experiments/overhead.py                                          # the default pair, on this machine
    python experiments/overhead.py --methods transformers autoregressive speculative:2 transformers-assisted:2
    python experiments/overhead.py --batch 1 4 16 --limit 16                # throughput of ragged batches
    python experiments/overhead.py --device cuda --random-weights llama-8b+1b --batch 1 4 16 64 --limit 64

Every method writes greedy answers to all prompts, in turns, in an order that rotates, `--repeats` times. The table has
the median time of a token, prompt included; speed relative to `transformers` and to `autoregressive` (medians over
prompts, with paired bootstrap intervals); how many texts are the same as those of the first of the two; the overhead
(wall time / the same bare forwards in the same order, timed beside them); and the share of the speed at which the large
model's weights are read once a token. The fastest setting of each method is marked. It is chosen on the prompts that it
is reported on, for the peers as for this engine.

Every measurement is a line of rows.jsonl, and a stopped run goes on after the last. Random hand-off (`backoff:RATE`) is
also compared with its own limit, 1 / (c + share of the large model), where c is a small-model token's cost in tokens of
the large one. OpenVINO GenAI has no row: it needs a model that was converted beforehand.
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
class Overhead:
    """Seconds per token of several engines and methods on the same models and prompts, in one run, interleaved."""

    methods: tuple[str, ...] | None = None
    """methods to measure, at least one of transformers and autoregressive among them (default: all, at several
    numbers). Without a number: transformers, autoregressive, llamacpp. With a number of drafted tokens: speculative:4,
    specinfer:4 (alternatives for one position), lookup:4, mtad:4, transformers-assisted:4, transformers-lookup:10,
    llamacpp-draft:4. With the share of escalated tokens: backoff:0.5. Our decoders on llama.cpp's forwards:
    llamacpp-autoregressive, llamacpp-speculative:2, llamacpp-backoff:0.5"""
    limit: int = 12
    """prompts, spread over their families"""
    max_new_tokens: int = 64
    repeats: int = 3
    batch: tuple[int, ...] = (1,)
    """batch sizes; one table each, of the methods that take batches"""
    small: str | None = None
    """folder, hub id or .gguf of the small model (default: the drafter in the repository)"""
    large: str | None = None
    """folder, hub id or .gguf of the large model (default: SmolLM2-135M-Instruct)"""
    random_weights: str | None = None
    """`llama-8b+1b` or `tiny`: random weights of these shapes instead of models, in bfloat16 if --dtype is auto.
    Their texts mean nothing, so only random hand-off, overhead and throughput are worth measuring"""
    prompts: str | None = None
    """prompts as train/fit_policy.py takes them (default: the embedded ones)"""
    ignore_generation_config: IgnoredSettings = ""
    device: str = "cpu"
    threads: int | None = None
    """CPU threads (default: torch's choice)"""
    output: Path = Path("runs/overhead/default")
    """folder of rows.jsonl (one line a prompt and repeat), settings.json, result.json and overhead.png"""
    dtypes: Dtypes = field(default_factory=DtypeOptions)
    reading: Reading = field(default_factory=PromptOptions)


def run(config: Overhead) -> dict:
    """Measure what is not measured yet and write the result. Raises InputError before any work is done."""
    from experiments.engine_speed import figure, setup, summary
    from experiments.engine_speed.measurement import measure, measure_limits
    from experiments.engines_under_test.catalogue import runnable
    from train.common import atomic, run_folder
    from train.common.cli import checking
    from train.common.progress import progress, say

    with checking():
        config = setup.check_settings(config)
        with progress("making or loading the models"):
            models, prompts = setup.load_models(config)
        methods, lacking = runnable(config.methods, models)
        setup.check_bases(methods)
        groups = setup.group_prompts(config, prompts)
        setting = setup.describe(config, models, methods)
        otherwise = f"name another --output or delete {config.output}"
        run_folder.ensure_same_run(config.output / "settings.json", setting, config, otherwise)
    for method, why in lacking.items():
        say(f"{method} is left out: {why}")
    rows = measure(groups, methods, models, config)
    result = {"settings": setting, "prompts": len(prompts), "left_out": lacking} | measure_limits(methods, models)
    result["batches"] = {str(b): summary.summarize(rows, b, methods, result) for b in config.batch}
    atomic.write_json(config.output / "result.json", result)
    figure.draw(result, config.output / "overhead.png")
    summary.show(result)
    say(f"written to {config.output}: rows.jsonl, result.json, overhead.png")
    return result


main = command(Overhead, run, __doc__, lambda config: config.output)

if __name__ == "__main__":
    raise SystemExit(main())
