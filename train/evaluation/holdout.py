"""The hold-out: measured once, live, paired and interleaved with every control."""

from dataclasses import dataclass

import numpy as np

from decoding import Autoregressive, Backoff
from decoding.models.defaults import target_source
from policies import Policy, Rule
from train.baselines.subprocess_engine import EngineEnded
from train.baselines.xllamacpp_server import XllamacppServer
from train.common.job import Job
from train.common.progress import say
from train.common.result import Holdout, MethodRow, Sample, Thought
from train.evaluation import live
from train.evaluation.samples import TUNED, samples
from train.evaluation.thoughts import thought


@dataclass(frozen=True)
class Contender:
    """A decoder that is measured, and what a reader calls it."""

    label: str
    decoder: object
    exact: bool = False  # whether drafts are accepted exactly, so that the large model judges every token
    length: int | None = None  # its longest draft, where the report plots speed by it


@dataclass
class Measurement:
    """The measurements of the contenders."""

    columns: dict[str, dict[str, np.ndarray]]  # by contender, per prompt (``live.measure``)
    rows: list[dict[str, dict]]  # by prompt, the answer of each contender
    methods: list[MethodRow]
    live_over_table: float
    samples: list[Sample]
    thought: Thought | None

    @property
    def tuned(self) -> MethodRow:
        return next(row for row in self.methods if row.key == TUNED)

    def holdout(self, subject: str, quality: str, compared: str, **more) -> Holdout:
        """The part of the result, with the verdict in one sentence: subject, its quality, and what it is beside."""
        verdict = (
            f"On {len(self.rows)} held-out prompts {subject} is {self.tuned.speedup:.2f}x as fast as the large model "
            f"alone{quality}; {compared}."
        )
        return Holdout(
            methods=self.methods,
            live_over_table=self.live_over_table,
            samples=self.samples,
            thought=self.thought,
            verdict=verdict,
            **more,
        )


def controls(job: Job) -> dict[str, Contender]:
    """The contenders of every table: each model alone."""
    return {
        live.LARGE: Contender("large model alone", Autoregressive(job.large)),
        "small": Contender("small model alone", Backoff(job.models, Rule.never(), verify_eos=False)),
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
    columns = live.measure(decoders, prompts, job.new, job.metric, path, "hold-out", setting=setting)
    rows = live.finished(path, decoders, setting)
    answers = [rows[p.id]["methods"] for p in prompts]
    return Measurement(
        columns,
        answers,
        [summary(columns, key, one) for key, one in contenders.items()],
        live.over_table(columns, prompts, job.cost.large),
        samples(job.models, policy, prompts, rows),
        thought(job.large.tokenizer, prompts, [methods[live.LARGE]["answer"] for methods in answers]),
    )


def _llama_cpp(job: Job) -> dict[str, Contender]:
    """The large model in llama.cpp, where that is installed and reads it."""
    source = job.settings.large or target_source()
    if not XllamacppServer.available(source):
        return {}
    decoder = XllamacppServer(source, job.large.tokenizer, job.large.context)
    return {"llamacpp": Contender("large model alone in llama.cpp", decoder)}


def summary(columns: dict[str, dict[str, np.ndarray]], key: str, contender: Contender) -> MethodRow:
    """One row of the table; intervals are 95 % bootstrap over prompts."""
    own, large, small = columns[key], columns[live.LARGE], columns["small"]
    n, span = len(own["loss"]), small["loss"].mean()
    return MethodRow(
        key=key,
        label=contender.label,
        tokens_per_second=float(own["tokens"].sum() / own["seconds"].sum()),
        speedup=live.speedup(columns, key),
        speedup_interval=live.bootstrap(lambda rows: live.speedup(columns, key, rows), n),
        loss=float(own["loss"].mean()),
        loss_interval=live.bootstrap(lambda rows: own["loss"][rows].mean(), n),
        large_share=None if contender.exact else float(np.average(own["large_share"], weights=own["tokens"])),
        length_ratio=float(own["tokens"].sum() / large["tokens"].sum()),
        total_time_ratio=float(own["seconds"].sum() / large["seconds"].sum()),
        recovered=float(1 - own["loss"].mean() / span) if span > 0 else None,
        plain_regret=float(own["regret"].mean()),
        length=contender.length,
    )
