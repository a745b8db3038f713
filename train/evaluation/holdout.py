"""The hold-out, measured once beside every control: losses by texts written in batches, speeds one text at a time.

A dozen prompts tell a speed, as methods take turns on each; a loss varies so much between prompts that it takes many.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from decoding.models.defaults import target_source
from policies import Policy, Rule
from policies.decoder_spec import DecoderSpec
from train.baselines.subprocess_engine import EngineEnded
from train.baselines.xllamacpp_server import XllamacppServer
from train.common.generations import places
from train.common.job import Job
from train.common.progress import say
from train.common.result import Grading, Holdout, MethodRow, Sample, Thought
from train.evaluation import live
from train.evaluation.holdout_texts import Columns, columns, write_texts
from train.evaluation.samples import TUNED, samples
from train.evaluation.scores import beside_large, grading, score_fields
from train.evaluation.thoughts import thought
from train.workers.blueprint import Blueprint


@dataclass(frozen=True)
class Contender:
    """A decoder that is measured, and what a reader calls it."""

    label: str
    decoder: object
    exact: bool = False  # whether drafts are accepted exactly, so that the large model judges every token
    length: int | None = None  # its longest draft, where the report plots speed by it
    blueprint: Blueprint | None = None  # of its decoder; without one no worker writes its texts

    @classmethod
    def made(cls, label: str, blueprint: Blueprint, exact: bool = False, length: int | None = None) -> Self:
        """The contender whose decoder is that of ``blueprint``."""
        return cls(label, blueprint.decoder, exact, length, blueprint)


@dataclass
class Measurement:
    """The measurements of the contenders."""

    texts: dict[str, Columns]  # by contender, of all prompts (``holdout_texts.columns``)
    timed: dict[str, Columns]  # by contender, of the timed prompts (``live.measure``)
    rows: list[dict[str, dict]]  # by prompt, the text of each contender
    methods: list[MethodRow]
    live_over_table: float
    samples: list[Sample]
    thought: Thought | None
    grading: Grading | None
    batch: int

    @property
    def _batches(self) -> str:
        return f" in batches of {self.batch}" if self.batch > 1 else ""

    @property
    def tuned(self) -> MethodRow:
        return self.row(TUNED)

    def row(self, key: str) -> MethodRow:
        """The row of the table of one contender."""
        return next(row for row in self.methods if row.key == key)

    @property
    def handoffs(self) -> dict[str, Columns]:
        """``texts`` with the seconds of hand-offs: priced by their calls, times what timed texts took over their price.

        So a speed is that of the prompts on which the loss was measured too.
        """
        many, found = len(next(iter(self.timed.values()))["seconds"]), {}
        for key, own in self.texts.items():
            price = own["priced_first"][:many].sum()
            over = self.timed[key]["seconds"].sum() / price if price else np.nan
            found[key] = own | {"seconds": own["priced"] * over}
        return found

    def holdout(self, subject: str, quality: str, compared: str, **more) -> Holdout:
        """The part of the result, with the verdict in one sentence: subject, its quality, and what it is beside."""
        verdict = (
            f"On {len(self.rows)} held-out prompts{self._batches} {subject} is {self.tuned.speedup:.2f}x as fast as "
            f"the large model alone{quality}; {compared}."
        )
        return Holdout(
            methods=self.methods,
            live_over_table=self.live_over_table,
            samples=self.samples,
            thought=self.thought,
            timed=len(self.timed[TUNED]["seconds"]),
            grading=self.grading,
            verdict=verdict + beside_large(self.tuned, self.row(live.LARGE)),
            **more,
        )


def controls(job: Job) -> dict[str, Contender]:
    """The contenders of every table: each model alone."""
    large = Blueprint.of(job.models, DecoderSpec("large"))
    small = Blueprint.of(job.models, DecoderSpec("backoff", {"verify_eos": False}), Rule.never())
    return {
        live.LARGE: Contender.made("large model alone", large),
        "small": Contender.made("small model alone", small),
    }


def measure(job: Job, contenders: dict[str, Contender], policy: Policy, setting: str) -> Measurement:
    """Measure ``contenders``, the tuned one with its ``policy`` among them, and llama.cpp on the held-out prompts.

    ``setting`` is what their names do not say: prompts that were measured with another one are measured again. Without
    an answer of llama.cpp all is measured without it.
    """
    try:
        return _measured(job, contenders | _llama_cpp(job), policy, setting)
    except EngineEnded as error:
        say(f"the table has no row of llama.cpp: {error}")
        return _measured(job, contenders, policy, setting)


def _measured(job: Job, contenders: dict[str, Contender], policy: Policy, setting: str) -> Measurement:
    decoders = {key: one.decoder for key, one in contenders.items()}
    prompts, path = job.splits["holdout"], job.folder / "holdout.jsonl"
    some, place = prompts[: job.settings.timed * job.settings.batch_size], places(prompts)
    seeds = [place[p.id] for p in some]  # as in batches, so the texts are the same
    how = {"setting": setting, "seeds": seeds, "sampling": job.sampling, "batch": job.settings.batch_size}
    timed = live.measure(decoders, some, job.new, job.metric, path, "hold-out", **how)
    blueprints = {key: one.blueprint or Blueprint(one.decoder) for key, one in contenders.items()}
    written = write_texts(job, blueprints, setting)
    texts = {key: columns(job, rows) for key, rows in written.items()}
    first = [some[: len(prompts)] for some in written.values()]  # the first text of each prompt, to look at
    rows = [dict(zip(written, of_prompt, strict=True)) for of_prompt in zip(*first, strict=True)]
    lossy = [key for key, one in contenders.items() if not one.exact and key != live.LARGE]
    return Measurement(
        texts,
        timed,
        rows,
        [summary(texts, timed, key, one) for key, one in contenders.items()],
        live.over_table(timed, some, job.cost),
        samples(job.models, policy, prompts, rows),
        thought(job.large.tokenizer, prompts, [methods[live.LARGE]["answer"] for methods in rows]),
        grading(job.metric.grade, texts, lossy),
        job.settings.batch_size,
    )


def _llama_cpp(job: Job) -> dict[str, Contender]:
    """The large model in llama.cpp, where that is installed and reads it; it writes greedy texts, one by one."""
    source = job.settings.large or target_source()
    if not (job.sampling.greedy and job.settings.batch_size == 1 and XllamacppServer.available(source)):
        return {}
    decoder = XllamacppServer(source, job.large.tokenizer, job.large.context)
    return {"llamacpp": Contender("large model alone in llama.cpp", decoder)}


def summary(texts: dict[str, Columns], timed: dict[str, Columns], key: str, contender: Contender) -> MethodRow:
    """One row of the table; intervals are 95 % bootstrap over prompts, of speeds over the timed ones."""
    own, clock, large, small = texts[key], timed[key], texts[live.LARGE], texts["small"]
    n, span = len(own["loss"]), small["loss"].mean()
    return MethodRow(
        key=key,
        label=contender.label,
        tokens_per_second=float(clock["tokens"].sum() / clock["seconds"].sum()),
        speedup=live.speedup(timed, key),
        speedup_interval=live.speed_interval(timed, lambda rows: live.speedup(timed, key, rows)),
        loss=float(own["loss"].mean()),
        loss_interval=live.bootstrap(lambda rows: own["loss"][rows].mean(), n),
        large_share=None if contender.exact else float(np.average(own["large_share"], weights=own["tokens"])),
        length_ratio=float(own["tokens"].sum() / large["tokens"].sum()),
        total_time_ratio=float(clock["seconds"].sum() / timed[live.LARGE]["seconds"].sum()),
        recovered=float(1 - own["loss"].mean() / span) if span > 0 else None,
        plain_regret=float(own["regret"].mean()),
        at_cap=float(own["capped"].mean()),
        length=contender.length,
        **score_fields(own),
    )
