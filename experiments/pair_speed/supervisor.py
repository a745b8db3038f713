"""Starts the process of one row at a time, keeps its lines, and goes on where a killed run stopped."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from policies.storage import atomic as files
from train.common import atomic
from train.common.progress import progress


@dataclass
class MeasuredRow:
    """The answer of a row to one prompt; ``phase``: search, measure, check (baseline again) or loss."""

    phase: str
    row: str
    number: int
    setting: dict
    prompt: str


class Supervisor:
    """Runs jobs for the ``worker``; ``base`` is what all jobs share."""

    def __init__(self, folder: Path, base: dict):
        self.folder, self.base, self.path = folder, base, folder / "rows.jsonl"
        self.rows = atomic.read_rows(self.path, MeasuredRow)

    def run(self, phase: str, row: str, number: int, setting: dict, prompts: Sequence, job: dict) -> list[dict]:
        """The lines of a row, of each of ``prompts``; those that are not kept yet are measured in a new process.

        RuntimeError, with the last line that the process wrote, where it ended early.
        """
        key = {"phase": phase, "row": row, "number": number, "setting": setting}
        done = {r["prompt"]: r for r in self.rows if all(r[name] == value for name, value in key.items())}
        places = [i for i, prompt in enumerate(prompts) if prompt.id not in done]
        if places:
            told = {name: [job[name][i] for i in places] for name in ("answers", "references") if name in job}
            left = [prompts[i] for i in places]
            about = self.base | {"setting": setting} | job | told | {"prompts": [list(p.ids) for p in left]}
            for prompt, reply in zip(
                left, self._replies(f"{phase} {row} {setting or ''}".rstrip(), about, len(left)), strict=True
            ):
                done[prompt.id] = key | {"prompt": prompt.id} | reply
                atomic.append_rows(self.path, [done[prompt.id]])
                self.rows.append(done[prompt.id])
        return [done[prompt.id] for prompt in prompts]

    def _replies(self, title: str, job: dict, count: int):
        path, said = self.folder / "job.json", self.folder / "worker.log"
        files.write(path, json.dumps(job).encode())
        # -P: a json.py in the working folder is no part of an engine.
        command = [sys.executable, "-P", "-m", "experiments.pair_speed.worker", str(path.resolve())]
        with said.open("wb") as log, progress(title, count) as update:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL)
            try:
                found = 0
                for line in process.stdout:
                    if line.startswith(b"{"):  # an engine may print lines of its own
                        yield json.loads(line)
                        found += 1
                        update(found)
                    if found == count:
                        break
                if found < count:
                    process.wait()
            finally:
                process.kill()  # its work is done: an engine may take its time to go
                process.wait()
                process.stdout.close()
        if found < count:
            lines = said.read_text(errors="replace").strip().splitlines() or ["nothing was said"]
            raise RuntimeError(f"its process ended with code {process.returncode}: {lines[-1]}")
