"""Logs a tuning run to Weights & Biases (W&B). An error of W&B ends the tracking, never the run.

Offline tracking needs neither key nor network: the run is written under `folder`/wandb, `wandb leet folder/wandb` shows
it in the terminal, and `wandb sync` uploads it later.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROJECT = "two-model-decoding"
METRICS = ("tokens_per_second", "speedup", "loss", "large_share", "length_ratio", "total_time_ratio", "recovered")
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

    mode: "offline", "online" (offline when there is no key or network) or "disabled" (wandb is not imported).
    config: the settings to log; values that are not JSON are logged as text.
    """

    def __init__(self, mode: str, folder: Path, name: str, config: dict[str, Any]):
        if mode not in ("offline", "online", "disabled"):
            raise ValueError(f"mode is {mode!r}; it must be offline, online or disabled")
        self.mode = mode
        self.folder = Path(folder)
        self.name = name
        self.config = config
        self.run = None
        self._set: list[str] = []
        self._logged: set[int] = set()

    def __enter__(self) -> Tracker:
        if self.mode != "disabled":
            self._environment()
        if self.mode == "online":
            try:
                self.run = self._start("online")
            except Exception as error:
                _warn(f"no online tracking, so it is offline in {self.folder}", error)
        if self.mode != "disabled" and self.run is None:
            self._guard(self._start, "offline")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        self._guard(self._finish, int(error is not None))
        self.run = None
        for key in self._set:
            os.environ.pop(key, None)

    def trial(self, study: Any, trial: Any) -> None:
        """Optuna callback: log a trial's parameters, values, constraints and scalar user attributes.

        A trial that is logged already is skipped, so trials of other workers may be passed in afterwards.
        """
        if self.run is not None and trial.number not in self._logged:
            self._logged.add(trial.number)
            self._guard(self._log_trial, study, trial)

    def table(self, result: dict[str, Any], picture: Path | None = None) -> None:
        """Log the table of methods, the summary and the figure of the frontier (default: `folder`/frontier.png)."""
        if self.run is not None:
            self._guard(self._log_table, result, self.folder / "frontier.png" if picture is None else Path(picture))

    def files(self, *kinds: str) -> None:
        """Log the existing files of `kinds`, any of "study", "traces" and "policy", as artifacts."""
        if self.run is not None:
            self._guard(self._log_files, kinds)

    def _guard(self, action: Callable[..., None], *args: Any) -> None:
        try:
            action(*args)
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
        self.run = wandb.init(
            project=PROJECT,
            name=self.name,
            dir=str(self.folder),
            config=_plain(self.config),
            mode=mode,
            reinit="create_new",
            settings=wandb.Settings(**SETTINGS),
        )
        self.run.define_metric("trial")
        self.run.define_metric("*", step_metric="trial")
        return self.run

    def _finish(self, exit_code: int) -> None:
        if self.run is not None:
            self.run.finish(exit_code=exit_code)

    def _log_trial(self, study: Any, trial: Any) -> None:
        row = {"trial": trial.number, "state": trial.state.name}
        row |= {f"param/{key}": value for key, value in trial.params.items()}
        row |= {f"attr/{k}": v for k, v in trial.user_attrs.items() if isinstance(v, bool | int | float | str)}
        if trial.values is not None:
            one = len(study.directions) == 1
            names = study.metric_names or (["value"] if one else [f"value_{i}" for i in range(len(study.directions))])
            row |= {f"objective/{key}": value for key, value in zip(names, trial.values, strict=True)}
            row |= {f"constraint/{key}": value for key, value in trial.constraints.items()}
            row["feasible"] = all(value <= 0 for value in trial.constraints.values())
        self.run.log(row)

    def _log_table(self, result: dict[str, Any], picture: Path) -> None:
        import wandb

        methods = result.get("methods", [])
        rows = [[method.get(key) for key in ("key", "label", *METRICS)] for method in methods]
        logged: dict[str, Any] = {"methods": wandb.Table(columns=["key", "label", *METRICS], data=rows)}
        if picture.exists():
            logged["frontier"] = wandb.Image(str(picture))
        self.run.log(logged)
        summary = {f"{m['key']}/{key}": m[key] for m in methods for key in METRICS if m.get(key) is not None}
        texts = {key: result[key] for key in ("verdict", "chosen_trial") if result.get(key) is not None}
        self.run.summary.update(summary | texts)

    def _log_files(self, kinds: tuple[str, ...]) -> None:
        import wandb

        for kind in kinds:
            found = sorted(path for pattern in FILES[kind] for path in self.folder.glob(pattern))
            if not found:
                continue
            artifact = wandb.Artifact(f"{self.name}-{kind}", type=kind)
            for path in found:
                # A copy, not a link: the run goes on and changes its files.
                artifact.add_file(str(path), str(path.relative_to(self.folder)))
            self.run.log_artifact(artifact)


def _warn(what: str, error: Exception) -> None:
    reason = " ".join(str(error).split())[:200]
    print(f"{what}: {type(error).__name__}: {reason}", file=sys.stderr)


def _plain(value: Any) -> Any:
    """The value, with everything that is not JSON turned into text."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
