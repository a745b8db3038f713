"""The study of a run: several processes may work on it at once, and it outlives each of them."""

import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.study import MaxTrialsCallback
from optuna.trial import FrozenTrial, TrialState

from policies.storage.documents import FileError
from train.common.database_url import masked, without
from train.common.progress import progress
from train.search import orphans
from train.search.journal import Journal
from train.search.sampler import RepeatableSampler

NOT_YET = "there is no search to join at {where} yet; start the run without --join, and join when it searches"
DAMAGED = "delete it to search anew; what was measured live is kept"
RUN = "run"
"""the attribute of a study that names the run it belongs to"""
DONE = (TrialState.COMPLETE, TrialState.PRUNED)
POOL = {"pool_size": 2, "max_overflow": 0, "pool_pre_ping": True}
"""of a worker's connections to a database: one for its trials and one for its heartbeat, both tried before they are
used, as servers close idle ones"""
PATIENCE = 600.0
"""seconds for which the end of a search waits for the last trials of other workers"""


def check_storage(url: str) -> None:
    """ValueError, one sentence, when no database answers at the URL."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with _connected(url):
            pass
    # ImportError: without the driver of that kind of database; ValueError: a port that is no number.
    except (SQLAlchemyError, ImportError, ValueError) as error:
        reason = without(str(error).splitlines()[0], url)
        raise ValueError(f"no database answers at --storage {masked(url)}: {reason}") from None


def open_storage(where: Path | str) -> BaseStorage:
    """A journal, for the processes that see the file ``where``, or the database at the URL ``where``.

    A database learns from a worker's heartbeat that it is gone, on whichever machine; a journal has none.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats are, and have tests here
    if isinstance(where, Path):
        return _open_journal(where)
    return RDBStorage(
        where,
        engine_kwargs={} if where.startswith("sqlite") else POOL.copy(),
        heartbeat_interval=orphans.HEARTBEAT,
        grace_period=3 * orphans.HEARTBEAT,
        heartbeat_stale_trial_callback=orphans.try_again,
    )


def _open_journal(path: Path) -> JournalStorage:
    try:
        return JournalStorage(Journal(path, DAMAGED))
    except FileError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise FileError(path, f"it is not the journal of a search ({error!r})", DAMAGED) from error


def open_study(
    where: Path | str, seed: int, baselines: list[dict], name: str = "policy", run: str | None = None
) -> optuna.Study:
    """The study called ``name``, made with its baselines enqueued or resumed with all its finished trials.

    A trial whose worker was killed is put back in its place in the queue with what it knows of itself, so that the
    search ends as if nothing had happened. ``run`` tells runs apart: ValueError when the study is that of another one,
    or its journal is damaged.
    """
    study = optuna.create_study(
        study_name=name, storage=open_storage(where), pruner=pruner(), direction="minimize", load_if_exists=True
    )
    _belong(study, run, where)
    if run is not None and RUN not in study.user_attrs:
        study.set_user_attr(RUN, run)
    study.sampler = RepeatableSampler(seed)
    orphans.queue_orphans(study)
    for params in baselines:
        study.enqueue_trial(params, skip_if_exists=True)
    return study


def join_study(where: Path | str, name: str = "policy", run: str | None = None) -> optuna.Study:
    """The study that another process has opened. ValueError when there is none yet, or it is of another ``run``."""
    if not (where.exists() if isinstance(where, Path) else _in_database(where, name)):
        raise ValueError(NOT_YET.format(where=shown(where)))
    try:
        # Without a seed, as two workers that drew the same numbers would try the same settings.
        sampler = optuna.samplers.TPESampler()
        study = optuna.load_study(study_name=name, storage=open_storage(where), sampler=sampler, pruner=pruner())
    except KeyError:
        raise ValueError(NOT_YET.format(where=shown(where))) from None
    _belong(study, run, where)
    return study


def _belong(study: optuna.Study, run: str | None, where: Path | str) -> None:
    """FileError when ``study`` is of another run than ``run``: its trials would be taken for this one's."""
    if run is not None and study.user_attrs.get(RUN, run) != run:
        raise FileError(shown(where), "it holds the search of another run", DAMAGED)


def shown(where: Path | str) -> Path | str:
    """``where`` without a password."""
    return where if isinstance(where, Path) else masked(where)


def _in_database(url: str, name: str) -> bool:
    """Whether the study is there. Optuna would create missing tables, and two processes at once would both fail."""
    from sqlalchemy import inspect, text

    with _connected(url) as connection:
        ready = inspect(connection).has_table("studies")
        row = text("select 1 from studies where study_name = :name")
        return ready and connection.execute(row, {"name": name}).first() is not None


def _connected(url: str):
    """A connection to the database at ``url`` that no pool keeps open."""
    from sqlalchemy import NullPool, create_engine

    return create_engine(url, poolclass=NullPool).connect()


def pruner() -> optuna.pruners.BasePruner:
    """Prunes a trial that is surely worse than the best feasible one, paired by prompt.

    Only a search that reports its prompts one by one is pruned: a trial that is replayed takes milliseconds.
    """
    return optuna.pruners.WilcoxonPruner(p_threshold=0.1)


def run_study(study: optuna.Study, search: Callable, trials: int, callbacks: list[Callable]) -> None:
    """Bring the study to ``trials`` finished trials, together with its other workers; at most one more per worker."""

    def objective(trial: optuna.Trial) -> float:
        try:
            orphans.sign(trial)
            return search(trial)
        except optuna.TrialPruned:
            raise
        except BaseException as error:
            raise _Ended from error

    with progress("searching", trials, len(finished(study))) as update:
        show = lambda study, trial: update(len(finished(study)))  # noqa: E731
        if len(finished(study)) < trials:
            orphans.enter(study)
            with _as_it_was(), warnings.catch_warnings():
                # Of a trial that was put back; it has the values that it had.
                warnings.filterwarnings("ignore", ".*is already (set|reported)")
                study.optimize(objective, callbacks=[*callbacks, show, MaxTrialsCallback(trials, DONE)])


class _Ended(BaseException):
    """Optuna must not see what ended a trial: it would print a traceback, and count a stopped trial as failed."""


@contextmanager
def _as_it_was() -> Iterator[None]:
    """The exception that ended a trial, or stopped Optuna while it ended one: a ``finally`` of its own hides that."""
    try:
        yield
    except _Ended as ended:
        raise ended.__cause__ from None
    except (AssertionError, UnboundLocalError) as error:
        hidden = error.__context__
        if isinstance(hidden, OSError | KeyboardInterrupt):
            raise hidden from None
        raise


def wait_for_trials(study: optuna.Study, patience: float = PATIENCE) -> None:
    """Wait until no trial is unfinished, so that every process that reads the study from here on reads the same.

    What a worker of another machine has not finished after ``patience`` seconds is left to it.
    """
    until = time.monotonic() + patience
    orphans.fail_orphans(study)
    while study.get_trials(deepcopy=False, states=[TrialState.RUNNING]) and time.monotonic() < until:
        time.sleep(0.1)
        orphans.fail_orphans(study)


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that are done: those that were measured to the end, and those that were pruned."""
    return study.get_trials(deepcopy=False, states=DONE)


def complete(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that were measured to the end."""
    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])


def pruned(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that were given up."""
    return study.get_trials(deepcopy=False, states=[TrialState.PRUNED])


def finalists(study: optuna.Study, count: int | None) -> list[FrozenTrial]:
    """The best feasible trials that differ in more than threshold and length; the nearest when none is feasible."""
    ranked = sorted(complete(study), key=lambda t: (max(0.0, t.constraints.get("goal", 0.0)), t.value))
    different: dict[str, FrozenTrial] = {}
    for trial in ranked:
        kind = json.dumps(
            {
                k: v if isinstance(v, str | int) else round(np.log10(v))
                for k, v in trial.params.items()
                if k not in ("quantile", "length")
            }
        )
        different.setdefault(kind, trial)
    return list(different.values())[:count]
