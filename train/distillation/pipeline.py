"""The distillation step by step; ``train/distill.py`` is its command line."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from decoding.cli.dtypes import DtypeOptions
from decoding.cli.generation_config import without
from decoding.models.defaults import load_model
from decoding.models.lm import LM
from train.common.cli import checking
from train.data.prompts import Prompt, load_prompts
from train.distillation.answers import write_generations
from train.distillation.batches import Sequence
from train.distillation.corpus import holdout_indices, own_generations, prompt_hashes, read_corpus
from train.distillation.drafter_file import export, notes
from train.distillation.gguf_file import check_writable
from train.distillation.on_policy import write_round
from train.distillation.self_prompts import user_opening, write_self_prompts
from train.distillation.settings import check_run, forgotten_if_wrong, remember_run, resolve
from train.distillation.student import student
from train.distillation.teacher import JoinedTopK, TopK
from train.distillation.trainer import Trainer
from train.workers import backend
from train.workers.crew import ALONE, Crew, Workers
from train.workers.pair import PairSource


def run(config) -> Path:
    """Run the distillation: answers, the target's top-k, training in rounds, export. Returns the drafter's path.

    Raises InputError for wrong input, before any work where possible.
    """
    with checking():
        config = resolve(config)
        crew = crew_of(config)
    with closing(crew):
        return distil(config, crew)


def crew_of(config) -> Crew:
    """The crew that makes the target's answers and labels. ValueError for --workers that there are not."""
    if config.workers is None:
        return ALONE
    found = backend.parse(config.workers, config.device, config.threads, config.output)
    how = {"device": config.device, "dtypes": DtypeOptions(large_dtype=dtype_of(config))}
    source = PairSource(
        None, config.target, ignore_generation_config=config.ignore_generation_config, **how, alone=True
    )
    return Workers(found, source, config.output / "workers")


def dtype_of(config) -> str:
    """That of the target's weights."""
    return config.dtype if config.target_dtype is None else config.target_dtype


def distil(config, crew: Crew) -> Path:
    """``run`` with resolved settings."""
    with checking():
        check_run(config)
        torch.manual_seed(config.seed)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        target = load_model("target", config.target, config.device, dtype_of(config))
        without([target], config.ignore_generation_config)
        model = student(config, target)
        if config.export == "gguf":
            check_writable(model.config)
        if config.top_k > target.vocab:
            raise ValueError(f"--top-k must be at most {target.vocab}, the vocabulary, not {config.top_k}")
        prompts, given = read_inputs(config, target)
        check_room(config, target, prompts, given)
        if not prompts and not config.self_prompts:
            check_enough(given)
        with forgotten_if_wrong(config):  # what is wrong may still be changed
            remember_run(config)
            sequences = own_answers(config, target, prompts, crew) + given
            check_room(config, target, [], sequences)
            check_enough(sequences)
    holdout = holdout_indices(sequences)
    training = [s for i, s in enumerate(sequences) if i not in holdout]
    trainer = train(config, target, model, sequences, holdout, crew)
    last = trainer.report() if trainer.last is None else trainer.last
    about = notes(config, target, prompt_hashes(training), last)
    path = export(model, target, config, about)
    print(f"wrote {path}")
    return path


def read_inputs(config, target: LM) -> tuple[list[Prompt], list[Sequence]]:
    """The prompts to answer, and the given answers and text. Raises ValueError for what cannot be used."""
    if config.self_prompts:
        user_opening(target.tokenizer)
    length, tokenizer = config.max_length, target.tokenizer
    prompts = [p for source in config.prompts for p in load_prompts(source, tokenizer, None, length, config.reading)]
    return prompts, read_corpus(
        config.generations, config.text, tokenizer, target.vocab, length, config.text_tokens, config.seed
    )


def own_answers(config, target: LM, prompts: list[Prompt], crew: Crew = ALONE) -> list[Sequence]:
    """The target's answers to ``prompts`` and to its own prompts, kept on disk and made only once."""
    path, own = config.output / "generations.jsonl", config.output / "self_prompts.jsonl"
    if config.self_prompts:
        write_self_prompts(target, config.self_prompts, own)
        how = replace(config.reading, columns=())
        prompts = prompts + load_prompts(own, target.tokenizer, None, config.max_length, how, note=lambda _: None)
    for temperature in config.temperatures if prompts else ():
        write_generations(target, prompts, path, config.answer_tokens, temperature, config.answer_batch, crew)
    return own_generations(path, config.max_length) if prompts else []


def check_room(config, target: LM, prompts: list[Prompt], sequences: list[Sequence]) -> None:
    """Raise ValueError when on-policy rounds are asked for and no prompt, to be answered or answered, is short enough.

    With --self-prompts, before they are written, they may be as short as their opening.
    """
    if not config.on_policy_rounds:
        return
    lengths = [len(p.ids) for p in prompts] + [s.prompt for s in sequences if s.prompt]
    if config.self_prompts and not any(s.prompt for s in sequences):
        lengths.append(len(user_opening(target.tokenizer)) + 1)
    if min(lengths, default=config.max_length) > config.max_length - config.on_policy_tokens:
        raise ValueError(f"no prompt leaves room for --on-policy-tokens {config.on_policy_tokens} in --max-length")


def check_enough(sequences: list[Sequence]) -> None:
    """Raise ValueError when nothing is left to train on."""
    if len(holdout_indices(sequences)) == len(sequences):
        raise ValueError("nothing is left to train on: all texts and answers are too short or empty")


def train(config, target: LM, model, sequences: list[Sequence], holdout: set[int], crew: Crew = ALONE) -> Trainer:
    """Train in equal parts, with ``config.on_policy_rounds`` rounds of drafting and labelling between them.

    A round that the checkpoint counts is not repeated, even if the minutes have been raised since.
    """

    def label(some: list[Sequence]) -> TopK:
        store = TopK(config.output / "store", some, config.top_k)
        store.fill(target, config.batch_tokens, crew)
        return store

    stores = [label(sequences)]
    trainer = Trainer(config, model, stores[0], holdout)
    training, seconds = [s for i, s in enumerate(sequences) if i not in holdout], 60 * config.minutes
    for number in range(1, config.on_policy_rounds + 1):
        path = config.output / f"on_policy-{number}.jsonl"
        if number > trainer.progress.rounds:
            trainer.run(seconds * number / (config.on_policy_rounds + 1))
            write_round(model, target.tokenizer, training, path, number, config)
        stores.append(label(own_generations(path, config.max_length)))
        trainer.use(JoinedTopK(stores), number)
    trainer.run(seconds)
    return trainer
