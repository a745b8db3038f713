"""Logs a tuning run to Weights & Biases (W&B). An error of W&B ends the tracking, never the run.

Offline tracking needs neither key nor network: the run is written under `folder`/wandb, `wandb leet folder/wandb` shows
it in the terminal, and `wandb sync` uploads it later. Each start of a run goes on in the same run of W&B. The process
that leads a search logs the trials of all its workers, so that no two processes write to one run.
"""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from policies.storage import documents
from train.common import atomic
from train.common.database_url import masked

PROJECT = "two-model-decoding"
METRICS = (
    *("tokens_per_second", "speedup", "loss", "large_share", "length_ratio", "total_time_ratio", "recovered"),
    *("at_cap", "guarded", "score", "score_difference"),
)
FILES = {
    "study": ("study.journal",),
    "traces": ("traces/*.json", "traces/*.parquet"),
    "policy": ("policy.json", "*.safetensors", "uncertified.json", "result.json"),
}
"""Kind of artifact -> its files, as patterns in the run's folder."""
SETTINGS = {
    "silent": True,
    "console": "off",  # do not capture the progress bars
    "x_disable_stats": True,  # a sampling thread would disturb the measurements
    "init_timeout": 20,
    "login_timeout": 20,
    "finish_timeout": 60,  # without it, a lost network blocks the finished run for ever
}


class Tracker:
    """One W&B run as a context manager. An error of W&B prints one line and ends the tracking.

    mode: "offline", "online" (offline when there is no key or network) or "disabled" (wandb is not imported); None: as
    the environment says.
    config: the settings to log; values that are not JSON are logged as text, and `storage` without its password.
    """

    def __init__(self, mode: str | None, folder: Path, name: str, config: dict[str, Any]):
        self.mode, self.folder, self.name, self.config = mode or mode_of_environment(), folder, name, config
        self.run, self._set = None, []
        self._logged = {"id": secrets.token_hex(4), "rows": 0, "trials": []}

    def __enter__(self) -> Self:
        if self.mode == "disabled":
            return self
        self._environment()
        if self.mode == "online":
            try:
                self.run = self._start("online")
            except Exception as error:
                _warn(f"no online tracking, so it is offline in {self.folder}", error)
        if self.run is None:
            with self._guard():
                self.run = self._start("offline")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if self.run is not None:
            with self._guard():
                self.run.finish(exit_code=int(error is not None))
                documents.write(self._known, self._logged | {"ended": True})
        self.run = None
        for key in self._set:
            os.environ.pop(key, None)

    def trials(self, study: Any, trials: Iterable[Any]) -> None:
        """Log the parameters, values, constraints and scalar user attributes of finished trials of any worker.

        A trial that is logged already, by this start or an earlier one, is skipped.
        """
        known = set(self._logged["trials"])
        for trial in trials:
            if self.run is not None and trial.number not in known:
                with self._guard():
                    self._log(_row(study, trial), trial.number)

    def _log(self, row: dict[str, Any], *trials: int) -> None:
        """Log a row. Its step is counted here: an offline run of W&B does not know those of earlier starts."""
        self.run.log(row, step=self._logged["rows"])
        self._logged["rows"] += 1
        self._logged["trials"] += trials
        documents.write(self._known, self._logged)

    @property
    def _known(self) -> Path:
        return self.folder / "wandb" / "logged.json"

    def table(self, result: dict[str, Any]) -> None:
        """Log the table of methods, the summary and `folder`/frontier.png; once, however often a run is begun again."""
        digest = documents.checksum(atomic.plain(result))
        if self.run is None or self._logged.get("result") == digest:
            return
        self._logged["result"] = digest
        with self._guard():
            import wandb

            methods, picture = result.get("methods", []), self.folder / "frontier.png"
            rows = [[method.get(key) for key in ("key", "label", *METRICS)] for method in methods]
            logged: dict[str, Any] = {"methods": wandb.Table(columns=["key", "label", *METRICS], data=rows)}
            if picture.exists():
                logged["frontier"] = wandb.Image(str(picture))
            self._log(logged)
            summary = {f"{m['key']}/{key}": m[key] for m in methods for key in METRICS if m.get(key) is not None}
            texts = {key: result[key] for key in ("verdict", "chosen_trial") if result.get(key) is not None}
            self.run.summary.update(summary | texts)

    def files(self, *kinds: str) -> None:
        """Log the existing files of `kinds`, any of "study", "traces" and "policy", as artifacts."""
        if self.run is None:
            return
        with self._guard():
            import wandb

            for kind in kinds:
                artifact = wandb.Artifact(f"{self.name}-{kind}", type=kind)
                for path in sorted(path for pattern in FILES[kind] for path in self.folder.glob(pattern)):
                    # A copy, not a link: the run goes on and changes its files.
                    artifact.add_file(str(path), str(path.relative_to(self.folder)))
                if artifact.manifest.entries:
                    self.run.log_artifact(artifact)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.run = None
            _warn("W&B tracking is off", error)

    def _environment(self) -> None:
        """Set what W&B reads from the environment only: silence at login, files here and not in the home folder."""
        here = str(self.folder.absolute() / "wandb")
        for key, value in {"WANDB_SILENT": "true", "WANDB_DATA_DIR": here, "WANDB_CACHE_DIR": here}.items():
            if key not in os.environ:
                os.environ[key] = value
                self._set.append(key)

    def _start(self, mode: str) -> Any:
        import wandb

        self.folder.mkdir(parents=True, exist_ok=True)
        if self._known.exists():
            self._logged = documents.read(self._known, "delete it, and all trials are logged as a new run")
            if not self._logged.pop("ended", False):  # it was killed, and what it logged last may not be on disk
                self._logged |= written(self.folder / "wandb", self._logged["id"])
        what = {"project": PROJECT, "name": self.name, "dir": str(self.folder), "config": self._shown()}
        settings = wandb.Settings(**SETTINGS, x_disable_meta=self.config.get("storage") is not None)
        again = {"id": self._logged["id"], "resume": "allow"}
        documents.write(self._known, self._logged)
        run = wandb.init(**what, **again, mode=mode, reinit="create_new", settings=settings)
        run.define_metric("trial")
        run.define_metric("*", step_metric="trial")
        return run

    def _shown(self) -> dict[str, Any]:
        """The settings without a password; W&B's metadata, which hold the command line, are left out where one is."""
        storage = self.config.get("storage")
        return atomic.plain(self.config | ({} if storage is None else {"storage": masked(storage)}))


def written(folder: Path, name: str) -> dict[str, Any]:
    """What the files of the run ``name`` hold in W&B's ``folder``: the number of rows, the trials, whether a result.

    Read by W&B's own program; {} where it cannot. A process that is killed leaves nothing of its last seconds there.
    """
    program, rows = Path(sys.executable).with_name("wandb"), []
    for start in folder.glob(f"*run-*-{name}"):
        command = [str(program), "leet", "inspect", "--json", str(start)]
        try:
            said = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=60).stdout
            records = map(json.loads, said.splitlines())
            rows += [record["history"]["item"] for record in records if record["type"] == "history"]
        except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
            return {}
    trials = sorted({row["trial"] for row in rows if "state" in row})
    last = max((row["_step"] for row in rows), default=-1)
    table = any(key.partition(".")[0] == "methods" for row in rows for key in row)
    return {"rows": last + 1, "trials": trials} | ({} if table else {"result": None})


def mode_of_environment() -> str:
    """The mode that W&B's own variables ask for; "offline" where they say nothing."""
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes"):
        return "disabled"
    mode = os.environ.get("WANDB_MODE", "offline").lower()
    return mode if mode in ("online", "disabled") else "offline"


def _row(study: Any, trial: Any) -> dict[str, Any]:
    row = {"trial": trial.number, "state": trial.state.name}
    row |= {f"param/{key}": value for key, value in trial.params.items()}
    row |= {f"attr/{k}": v for k, v in trial.user_attrs.items() if isinstance(v, bool | int | float | str)}
    if trial.values is not None:
        one = len(study.directions) == 1
        names = study.metric_names or (["value"] if one else [f"value_{i}" for i in range(len(study.directions))])
        row |= {f"objective/{key}": value for key, value in zip(names, trial.values, strict=True)}
        row |= {f"constraint/{key}": value for key, value in trial.constraints.items()}
        row["feasible"] = all(value <= 0 for value in trial.constraints.values())
    return row


def _warn(what: str, error: Exception) -> None:
    print(f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:200]}", file=sys.stderr)
