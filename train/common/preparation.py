"""Before any work: the settings are checked, the models loaded, the splits made."""

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from decoding import LM
from decoding.cli.dtypes import weights_line
from decoding.cli.generation_config import check_ignored, own_sampling, without
from decoding.cli.options import use
from decoding.cli.sampling import SamplingOptions, described
from decoding.cost import cache
from decoding.cost.costs import ModelCosts
from decoding.cost.timing import measure
from decoding.models.defaults import load_model
from decoding.models.settings import check_settings
from decoding.models.vocabulary import check_compatible
from policies.storage.atomic import naming
from train import certify
from train.common import run_folder
from train.common.cli import at_least
from train.common.drawing import check_drawing, texts_a_prompt
from train.common.job import Job
from train.common.progress import forget_notes, note, progress, say
from train.common.settings import MAY_CHANGE, FitPolicy
from train.data.prompts import Prompt, prompts_for
from train.data.splits import independent, refuse_overlap, reserve, split, split_hash
from train.methods import tuning_method
from train.quality.metric import QualityMetric
from train.quality.sampled_baseline import SampledBaseline
from train.search.study import check_storage
from train.workers import backend
from train.workers.backend import Backend
from train.workers.crew import ALONE, Alone, Crew, Workers
from train.workers.pair import PairSource

LEAST = {
    "max_new_tokens": 1,
    "trials": 1,
    "longest": 1,
    "seed": 0,
    "rounds": 0,
    "holdout": 0,
    "timed": 1,
    "batch_size": 1,
}


def prepare(settings: FitPolicy) -> Job:
    """Check the settings, load models and prompts, time the models; nothing is written before all is checked.

    Raises ValueError or OSError, one sentence, for whatever is wrong with the input.
    """
    forget_notes()
    method = tuning_method(settings.method)
    goal, folder = method.goal(settings), output_folder(settings)
    if settings.join and not (folder / "run.json").exists():
        raise ValueError(f"there is no run to join in {folder}; start it without --join first")
    if settings.join and settings.workers is not None:
        raise ValueError("leave out --workers: --join helps the search of a run, and its first process has the workers")
    at_least(settings, LEAST | method.least)
    otherwise = f"use another --name or delete {folder}"
    date = run_folder.recorded_date(folder / "run.json", otherwise)
    settings.dtypes.check()
    check_drawing(settings)
    if not (settings.drawing.greedy or method.draws):
        raise ValueError(f"leave out --temperature: --method {settings.method} tunes for greedy texts only")
    dtypes = settings.dtypes.resolved(run_folder.recorded_dtypes(folder / "run.json", otherwise))
    settings = replace(settings, reading=settings.reading.dated(date), dtypes=dtypes)
    use(settings.device, settings.threads)
    found = workers_asked(settings, folder)
    check_certificate(settings, method.certifiable)
    if settings.storage is not None:
        check_storage(settings.storage)
    small, large = load_pair(settings, settings.drawing)
    settings = replace(settings, dtypes=settings.dtypes.resolved((small.dtype, large.dtype)))
    settings = drawn_by(large, settings)
    splits = make_splits(settings, small, large)
    metric = QualityMetric(large, settings.grader, settings.max_new_tokens, sampled_baseline(settings, large))
    metric.check(prompt for some in splits.values() for prompt in some)
    if settings.traces is not None:
        method.check_traces(settings, small, large, splits)
    run = _identity(settings, [small, large], splits)
    run_folder.ensure_same_run(folder / "run.json", run, settings, otherwise)
    cost = timing_table(folder, [small, large], settings.batch_size)
    # The first process of a run that is joined may be at the same shards.
    crew = Alone(f"-{os.getpid()}") if settings.join else crew_of(settings, found, folder)
    return Job(settings, goal, folder, small, large, splits, cost, metric, crew=crew)


def workers_asked(settings, folder: Path) -> Backend | None:
    """The back end of --workers of a run or a comparison in ``folder``. ValueError for one that there is not."""
    if settings.workers is None:
        return None
    return backend.parse(settings.workers, settings.device, settings.threads, folder)


def crew_of(settings, found: Backend | None, folder: Path) -> Crew:
    """The crew of a run or a comparison in ``folder``: it writes the traces and texts."""
    return ALONE if found is None else Workers(found, PairSource.of(settings), folder / "workers")


def drawn_by(large: LM, settings):
    """``settings`` with the numbers of ``large`` in place of --temperature model."""
    settings = replace(settings, drawing=settings.drawing.resolved(large))
    if settings.drawing.greedy and settings.seeds is not None:
        raise ValueError(f"leave out --seeds: {large.name} draws no texts by its generation_config")
    return settings


def sampled_baseline(settings, large: LM) -> SampledBaseline | None:
    """The baseline of losses where texts are drawn, else None; ``settings`` are of a run or of a comparison."""
    sampling = settings.drawing.sampling()
    if sampling.greedy:
        return None
    return SampledBaseline(large, sampling, texts_a_prompt(settings), settings.max_new_tokens)


def output_folder(settings) -> Path:
    """OUTPUT/NAME, which is made once everything else has been checked."""
    if settings.name in ("", ".", "..") or Path(settings.name).name != settings.name:
        raise ValueError(f"--name must be a plain folder name, not {settings.name!r}")
    if settings.name.splitlines() != [settings.name] or "\0" in settings.name:
        raise ValueError(f"--name must be one line of text, not {settings.name!r}")
    folder = settings.output / settings.name
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"the output folder {folder} cannot be made or written: look at {there}")
    return folder


def load_pair(settings, drawing: SamplingOptions = SamplingOptions()) -> tuple[LM, LM]:
    """(small, large), of one tokenizer, without the settings that are to be ignored."""
    check_ignored(settings.ignore_generation_config)
    with progress("loading the models"):
        large, small = (
            load_model(role, getattr(settings, role), settings.device, settings.dtypes.of(role), settings.backend)
            for role in ("large", "small")
        )
    say(weights_line(("large", "small"), (large, small)))
    check_compatible([small, large])
    without([small, large], settings.ignore_generation_config)
    if drawing.temperature != "model" and (own := own_sampling(large)):
        now = "greedy" if drawing.greedy else f"drawn with {described(drawing.sampling(large))}"
        say(f"the large model is made to draw with {own}; texts are {now} here, and --temperature model draws so")
    for lm, greedy in ((small, True), (large, drawing.greedy)):
        check_settings(lm, greedy)  # here, not in the first text: timing the models takes minutes
    return small, large


def make_splits(settings: FitPolicy, small: LM, large: LM) -> dict[str, list[Prompt]]:
    """The prompts of each split: shares of the first --limit, then more to hold out and to certify on.

    Those follow in the source, so that without them the other splits stay; certification has the first right to them.
    """
    noted = (lambda _: None) if settings.certify else note  # the second reading is of these too
    prompts = prompts_for(settings, [small, large], settings.limit, noted)
    splits = split(prompts, dict(zip(("fit", "tune", "holdout"), settings.sizes, strict=True)), settings.seed)
    wanted = max(0, settings.holdout - len(splits["holdout"])), settings.certify
    if any(wanted):
        again = note if settings.certify else lambda _: None
        pool = prompts_for(settings, [small, large], len(prompts) + 4 * sum(wanted), again)
        others = independent(pool, prompts)
        more = min(wanted[0], max(0, len(others) - settings.certify))
        splits["holdout"] += others[:more]
    if settings.certify:
        splits["certify"] = reserve(others[more:], prompts, settings.certify)
        refuse_overlap(splits)
    return splits


def _identity(settings: FitPolicy, models: list[LM], splits: dict[str, list[Prompt]]) -> dict:
    """Everything that must not change on resume: trials and measurements of different runs would be mixed."""
    return {
        "settings": {key: value for key, value in asdict(settings).items() if key not in MAY_CHANGE},
        "models": [lm.identity() for lm in models],
        "splits": {name: split_hash(prompts) for name, prompts in splits.items()},
    }


def timing_table(folder: Path, models: Sequence[LM], batch: int = 1) -> ModelCosts:
    """The costs of ``models`` in batches of so many rows, measured once per run."""
    path = folder / "cost.json"
    if not path.exists() or cache.read(path).batch != batch:
        with progress("timing the models"):
            costs = measure(models, say=say, batch=batch)
        with naming(path):
            cache.write(path, models, costs)
    return cache.read(path)


def check_certificate(settings: FitPolicy, certifiable: bool) -> None:
    """Print how many prompts a certificate of the budget takes. ValueError, one sentence, for one that cannot be had.

    ``certifiable`` is whether the tuning method makes certificates at all.
    """
    budget, confidence, cap, n = settings.quality_budget, settings.confidence, settings.loss_cap, settings.certify
    if n < 0:
        raise ValueError(f"--certify is a number of prompts, not {n}")
    if n and budget is None:
        raise ValueError("--certify needs --quality-budget: a certificate promises a loss")
    if n and not certifiable:
        raise ValueError(f"leave out --certify: --method {settings.method} makes no certificate")
    if n:
        certify.check_settings(budget, confidence, cap)
    elif budget is None or not budget < cap or not certifiable:
        return
    enough = [certify.needed(budget, confidence, cap, part * budget) for part in (0.0, 0.5, 0.75)]
    if n and (enough[0] is None or n < enough[0]):
        raise ValueError(f"--certify {n} certifies nothing: {_prompts(enough[0])} are needed even if the loss is 0")
    say(
        f"to certify a loss of {budget:g} (at confidence {confidence:g}, losses capped at {cap:g}), --certify needs "
        f"{_prompts(enough[0])} if the true loss is 0, {_prompts(enough[1])} if it is half of that and "
        f"{_prompts(enough[2])} at three quarters{f'; it has {n}' if n else ''}"
    )


def _prompts(n: int | None) -> str:
    return f"more than {certify.LIMIT} prompts" if n is None else f"{n} prompts"
