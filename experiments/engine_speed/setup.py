"""The setting of ``experiments/overhead.py``: checked settings, the pair, and the prompts in groups."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from decoding.cli.generation_config import check_ignored, without
from decoding.cli.options import use
from decoding.models.defaults import DRAFTER, load_model, target_source
from decoding.models.vocabulary import check_compatible
from experiments.engine_speed.random_models import SHAPES, random_pair, random_prompts
from experiments.engine_speed.summary import BASES
from experiments.engines_under_test.catalogue import Models, parse
from train.common.cli import at_least
from train.common.machine import machine
from train.data.prompts import Prompt, load_prompts, room_for_prompts
from train.data.splits import split_hash

PEERS = ("transformers", *(f"transformers-assisted:{n}" for n in (1, 2, 3, 4, 8)))
PEERS += ("transformers-lookup:4", "transformers-lookup:10", "llamacpp", "llamacpp-draft:2", "llamacpp-draft:4")
OURS = ("autoregressive", *(f"speculative:{n}" for n in (1, 2, 3, 4)), "specinfer:4", "lookup:4", "mtad:4")
REAL = (*PEERS[:1], *OURS, "backoff:0.3", "backoff:0.5", "backoff:0.7", *PEERS[1:])
RANDOM = ("transformers", "autoregressive", *(f"backoff:0.{n}" for n in range(1, 10)), "speculative:4")


@dataclass
class PromptGroup:
    """Prompts answered in one batch, in one of the repeats: every method's measurements of them are one row."""

    batch: int
    repeat: int
    prompts: list[Prompt]

    @property
    def key(self) -> tuple:
        return self.batch, self.repeat, tuple(self.names)

    @property
    def names(self) -> list[str]:
        """The prompts by id and hash of their content."""
        return [f"{p.id}:{split_hash([p])[:8]}" for p in self.prompts]


def check_settings(config):
    """The settings with their defaults. ValueError for all that can be found wrong without loading a model."""
    at_least(config, dict.fromkeys(("limit", "max_new_tokens", "repeats"), 1))
    if not config.batch or min(config.batch) < 1 or len(set(config.batch)) < len(config.batch):
        raise ValueError(f"--batch must be different numbers of at least 1, not {config.batch}")
    made = config.random_weights
    if made is not None and made not in SHAPES:
        raise ValueError(f"--random-weights must be {' or '.join(SHAPES)}, not {made!r}")
    if made is not None and any((config.small, config.large, config.prompts)):
        raise ValueError("--random-weights takes no --small, --large or --prompts: all of it is random")
    methods = config.methods if config.methods is not None else REAL if made is None else RANDOM
    for method in methods:
        parse(method)
    check_bases(methods)
    if len(set(methods)) < len(methods):
        raise ValueError("--methods must not name one method twice")
    config.dtypes.check()
    check_ignored(config.ignore_generation_config)
    if made is not None and any(config.dtypes.of(role).startswith("int") for role in ("small", "large")):
        raise ValueError("--random-weights are bfloat16, float16 or float32: nothing quantises them")
    use(config.device, config.threads)
    return replace(config, methods=tuple(methods))


def check_bases(methods: Sequence[str]) -> None:
    """ValueError when there is nothing to compare the methods with."""
    if not set(BASES) & set(methods):
        raise ValueError(f"--methods must hold {' or '.join(BASES)}: the others are compared with these")


def load_models(config) -> tuple[Models, list[Prompt]]:
    """The pair, and prompts that fit it."""
    if config.random_weights is not None:
        models = Models(*random_pair(config.random_weights, config.device, config.dtypes.resolved(["bfloat16"] * 2)))
        prompts = random_prompts(models.large.vocab, config.limit)
    else:
        sources = {"small": config.small, "large": config.large}
        pair = [load_model(role, some, config.device, config.dtypes.of(role)) for role, some in sources.items()]
        without(pair, config.ignore_generation_config)
        models = Models(*pair, files=(config.small or str(DRAFTER), config.large or target_source()))
        room = room_for_prompts(pair, config.max_new_tokens)
        prompts = load_prompts(config.prompts, pair[1].tokenizer, config.limit, room, config.reading)
    check_compatible([models.small, models.large])
    models.context = max(len(p.ids) for p in prompts) + config.max_new_tokens + 64
    return models, prompts


def group_prompts(config, prompts: Sequence[Prompt]) -> list[PromptGroup]:
    """All prompts in full batches of each size, repeat by repeat."""
    groups = [(b, list(prompts[i : i + b])) for b in config.batch for i in range(0, len(prompts) - b + 1, b)]
    missing = [b for b in config.batch if b > len(prompts)]
    if missing:
        raise ValueError(f"--batch {missing[0]} needs as many prompts, and there are {len(prompts)}; raise --limit")
    return [PromptGroup(b, repeat, group) for repeat in range(config.repeats) for b, group in groups]


def describe(config, models: Models, methods: Sequence[str]) -> dict:
    """All that rows depend on, except for their own prompts, batch and repeat."""
    return {
        "methods": list(methods),
        "max_new_tokens": config.max_new_tokens,
        "models": [models.small.identity(), models.large.identity()],
        "machine": machine(config.device, [models.small.dtype, models.large.dtype]),
    }
