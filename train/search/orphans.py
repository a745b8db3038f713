"""Trials whose worker is gone: each is signed by the process that works on it, so that another can take it up."""

import os
import platform
import time
from contextlib import suppress

import optuna
from optuna.trial import FrozenTrial, TrialState

from policies.storage.atomic import lives

WORKER = "worker"
"""the attribute of a trial that names its process, and the first word of those of a study that name all processes"""
HEARTBEAT = 60
"""seconds between two signs of life in a database, where a worker is given up after three; in a journal, seconds in
which a worker must sign a trial that it has begun"""


def enter(study: optuna.Study) -> None:
    """Tell the others that this process begins trials from now on."""
    study.set_user_attr(f"{WORKER} {_me()}", True)


def sign(trial: optuna.Trial) -> None:
    """Tell the others that this process works on ``trial``."""
    trial.set_user_attr(WORKER, _me())


def _me() -> str:
    return f"{platform.node()}:{os.getpid()}"


def queue_orphans(study: optuna.Study) -> None:
    """Put unfinished trials back in the queue whose worker, a process of this machine, is gone or was interrupted.

    Only for the process that leads the search: two that did it at once could hand out one trial twice. What a trial
    has drawn it keeps; it is evaluated again.
    """
    optuna.storages.fail_stale_trials(study)  # of all machines, where the storage has heartbeats
    for trial in _orphans(study):
        with suppress(optuna.exceptions.UpdateFinishedTrialError):  # another worker was first
            study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)  # Optuna has no public way


def fail_orphans(study: optuna.Study) -> None:
    """Mark those trials as failed, and try baselines among them again; any worker may do so."""
    optuna.storages.fail_stale_trials(study)
    for trial in _orphans(study):
        try:
            study.tell(trial.number, state=TrialState.FAIL)
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
            continue  # another worker was first
        try_again(study, trial)


def alone(study: optuna.Study) -> bool:
    """Whether all other processes that have entered are gone."""
    return not any(name.startswith(f"{WORKER} ") and not _gone(name[len(WORKER) + 1 :]) for name in study.user_attrs)


def _orphans(study: optuna.Study) -> list[FrozenTrial]:
    """The calling process works on no trial, so one that it has signed was interrupted."""
    running, nobody = study.get_trials(deepcopy=False, states=[TrialState.RUNNING]), alone(study)
    return [trial for trial in running if _orphaned(trial, nobody)]


def _orphaned(trial: FrozenTrial, nobody: bool) -> bool:
    """``nobody``: there is no other process that is just about to sign what it has begun."""
    if WORKER not in trial.user_attrs:
        return nobody or time.time() - trial.datetime_start.timestamp() > HEARTBEAT
    return _gone(trial.user_attrs[WORKER])


def _gone(worker: str) -> bool:
    """Whether it is known to do nothing: it was a process of this machine, or it is the calling one."""
    node, _, process = worker.rpartition(":")
    return node == platform.node() and (int(process) == os.getpid() or not lives(int(process)))


def try_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Enqueue a failed baseline again, with nothing but its settings.

    Optuna's own callback would copy constraints too, which can be set only once: the second attempt could not correct
    those of the first.
    """
    if "fixed_params" in trial.system_attrs:
        study.enqueue_trial(trial.system_attrs["fixed_params"])
