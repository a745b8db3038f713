"""What a server leaves of every request: a line of JSON, and sums for its metrics."""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Record:
    """One answered request. ``began``: seconds since 1970; without its text, which may be private."""

    id: str
    began: float
    seconds: float
    first_token_seconds: float | None
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    written_by: dict[str, int]
    policy: dict[str, Any]
    finish_reason: str | None
    error: str | None


class Records:
    """Counts requests, and appends each to ``path`` where there is one."""

    def __init__(self, path: Path | None = None):
        self.path, self.requests, self.tokens = path, Counter(), Counter()
        self._lock = threading.Lock()
        self._file = None if path is None else path.open("a", encoding="utf-8", buffering=1)

    def add(self, record: Record) -> None:
        """Count one request."""
        with self._lock:
            self.requests["failed" if record.error else record.finish_reason] += 1
            self.tokens.update(record.written_by)
            if self._file is not None:
                self._file.write(json.dumps(asdict(record)) + "\n")

    def metrics(self) -> str:
        """Counters in Prometheus' text format."""
        with self._lock:
            lines = ["# TYPE requests_total counter"]
            lines += [f'requests_total{{finish="{kind}"}} {count}' for kind, count in sorted(self.requests.items())]
            lines += ["# TYPE tokens_written_total counter"]
            lines += [f'tokens_written_total{{model="{name}"}} {count}' for name, count in sorted(self.tokens.items())]
        return "\n".join(lines) + "\n"
