"""Settings of a distillation: fills in automatic values, refuses wrong ones, and protects runs of other settings."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from decoding.cli.dtypes import check_dtype
from decoding.cli.options import use
from decoding.models.defaults import target_source
from decoding.models.dtypes import bfloat16_is_fast
from train.common import run_folder
from train.common.cli import at_least, positive

LEAST = {
    **dict.fromkeys(("self_prompts", "text_tokens", "on_policy_rounds", "negatives"), 0),
    **dict.fromkeys(("seed", "prompt_weight", "hard"), 0),
    **dict.fromkeys(("answer_tokens", "answer_batch", "layers", "width", "heads", "inner", "on_policy_tokens"), 1),
    **dict.fromkeys(("batch_tokens", "top_k", "threads"), 1),
    "max_length": 2,
}
MAY_CHANGE = (
    *("minutes", "output", "resume", "export", "answer_batch"),
    *("device", "dtype", "threads", "compile", "batch_tokens", "negatives", "workers"),
)
"""Settings that may change on resume: they say where and how long a run trains, not on what."""

OTHERWISE = "name another --output"
ANSWERS = "generations.jsonl", "self_prompts.jsonl"
"""what the target writes before the training"""


def resolve(config):
    """``config`` with every automatic value filled in. Raises ValueError, one sentence; writes nothing."""
    _check_numbers(config)
    _check_sources(config)
    config = _with_size(config) if config.init is None else config
    cuda = config.device.startswith("cuda")
    target = target_source() if config.target is None else config.target
    automatic = {
        "dtype": "bfloat16" if bfloat16_is_fast(config.device) else "float32",
        "answer_batch": 256 if cuda else 96,
        "batch_tokens": 65536 if cuda else 4096,
        "negatives": 0 if cuda else 2048,
        "export": "gguf" if target.endswith(".gguf") else "folder",
    }
    missing = {name: value for name, value in automatic.items() if getattr(config, name) in (None, "auto")}
    if config.export == "gguf" and not target.endswith(".gguf"):
        raise ValueError(f"--export gguf needs a target in GGUF, for its tokenizer, not {target}; use --export folder")
    date = run_folder.recorded_date(_path(config), OTHERWISE)
    return replace(config, target=target, reading=config.reading.dated(date), **missing)


def check_run(config) -> None:
    """Raise ValueError for an output folder with a run of other settings, or with any run after --no-resume."""
    if config.output.exists() and not config.output.is_dir():
        raise ValueError(f"--output {config.output} is not a folder")
    if _path(config).exists() and not config.resume:
        raise ValueError(f"{config.output} holds a run already; go on with it without --no-resume, or name another")
    run_folder.check(_path(config), _identity(config), config, OTHERWISE)


def remember_run(config) -> None:
    """Make the output folder and write the settings that ``check_run`` compares."""
    run_folder.remember(_path(config), _identity(config))


@contextmanager
def forgotten_if_wrong(config) -> Iterator[None]:
    """Where a run that begins in this block turns out to be wrong (ValueError), the folder is as if it had not begun.

    Else the corrected command would be refused as another run.
    """
    made = [path for path in (_path(config), *(config.output / name for name in ANSWERS)) if not path.exists()]
    try:
        yield
    except ValueError:
        if _path(config) in made:
            for path in made:
                path.unlink(missing_ok=True)
        raise


def _path(config) -> Path:
    return config.output / "settings.json"


def _identity(config) -> dict:
    return {name: value for name, value in asdict(config).items() if name not in MAY_CHANGE}


def _with_size(config):
    width = 256 if config.width is None else config.width
    heads = max(1, width // 64) if config.heads is None else config.heads
    if width % heads or width // heads % 2:
        raise ValueError(f"--width {width} must be an even multiple of --heads {heads}")
    layers, inner = 4 if config.layers is None else config.layers, 4 * width if config.inner is None else config.inner
    return replace(config, layers=layers, width=width, heads=heads, inner=inner)


def _check_numbers(config) -> None:
    at_least(config, LEAST)
    positive(config, "minutes", "lr", "on_policy_share")
    if config.hard > 1 or config.on_policy_share > 1:
        raise ValueError("--hard and --on-policy-share must be at most 1")
    if not config.temperatures or min(config.temperatures) < 0:
        raise ValueError("--temperatures must be at least one, each at least 0")
    check_dtype("--target-dtype", config.target_dtype)
    use(config.device, config.threads)


def _check_sources(config) -> None:
    answers = config.prompts or config.self_prompts or config.generations
    if not answers and not config.text:
        raise ValueError("there is nothing to train on: give --self-prompts, --prompts, --generations or --text")
    if config.on_policy_rounds and not answers:
        raise ValueError("--on-policy-rounds need answers: give --self-prompts, --prompts or --generations")
    missing = [path for path in (*config.generations, *config.text) if not Path(path).is_file()]
    if missing:
        raise ValueError(f"there is no file {missing[0]}")
