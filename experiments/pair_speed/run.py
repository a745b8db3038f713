"""The comparison of ``experiments/speed.py``, row by row."""

import os
from pathlib import Path

import torch

from decoding.cli.generation_config import check_ignored
from decoding.cli.options import use
from decoding.models.architectures import context
from decoding.models.defaults import DRAFTER, target_source
from decoding.models.dtypes import bfloat16_is_fast
from decoding.models.loading import read_config, read_tokenizer
from decoding.models.sources import locate
from experiments.pair_speed.row_kinds import TUNED, decoder_of, exact, parse
from experiments.pair_speed.supervisor import Supervisor
from experiments.pair_speed.table import figures, ratio, seconds_per_token
from train.common.cli import at_least
from train.common.progress import say
from train.data.prompts import PromptError, load_prompts
from train.data.splits import split_hash

CHECKED = 4
"""prompts that the baseline answers again at the end"""


def check_settings(config) -> None:
    """ValueError for all that can be found wrong without reading a model."""
    names = ("limit", "transformers_limit", "search_prompts", "max_new_tokens", "passes")
    at_least(config, dict.fromkeys(names, 1))
    for row in config.rows:
        parse(row)
    if not config.rows or len(set(config.rows)) < len(config.rows):
        raise ValueError("--rows must be different rows, at least one")
    if config.baseline is not None and config.baseline not in config.rows:
        raise ValueError(f"--baseline {config.baseline} must be one of --rows")
    config.dtypes.check()
    check_ignored(config.ignore_generation_config)
    use("cpu", config.threads)


class Comparison:
    """The rows of one pair; loads tokenizers, never weights."""

    def __init__(self, config):
        self.config, new = config, config.max_new_tokens
        self.sources = config.small or str(DRAFTER), config.large or target_source()
        found = [locate(source) for source in self.sources]
        self.tokenizer = read_tokenizer(found[1], {})
        room = min(context(read_config(source, {})) for source in found) - new
        if room < 1:
            raise PromptError(f"--max-new-tokens {new} leaves no room for a prompt")
        some = config.limit + config.search_prompts
        every = load_prompts(config.prompts, self.tokenizer, some, room, config.reading)
        self.prompts = every[: config.limit]
        self.searched = every[config.limit :] or self.prompts[: config.search_prompts]
        self.left_out = {row: why for row in config.rows if (why := parse(row).lacks(self.sources))}
        usual = [row for row in ("llama.cpp", "large") if row in config.rows and row not in self.left_out]
        self.baseline = config.baseline or (usual or config.rows)[0]
        self.peer_dtype = "bfloat16" if bfloat16_is_fast("cpu") else "float32"
        self.lines, self.chosen = {}, {}

    def identity(self) -> dict:
        """All that a line depends on, except its row and prompt."""
        sizes = {source: os.path.getsize(source) for source in self.sources if Path(source).is_file()}
        named = ("max_new_tokens", "limit", "search_prompts", "ignore_generation_config")
        return {name: getattr(self.config, name) for name in named} | {
            "models": list(self.sources), "sizes": sizes, "dtypes": vars(self.config.dtypes),
            "threads": torch.get_num_threads(), "prompts": split_hash([*self.prompts, *self.searched]),
        }  # fmt: skip

    def measure(self) -> dict:
        """All rows, pass by pass; a row whose process dies is left out, with the reason."""
        longest = max(len(p.ids) for p in (*self.prompts, *self.searched))
        base = {
            "sources": self.sources, "max_new_tokens": self.config.max_new_tokens, "peer_dtype": self.peer_dtype,
            "context": longest + self.config.max_new_tokens + 64, "threads": torch.get_num_threads(),
            "ignored": self.config.ignore_generation_config,
            "converted": str(self.config.output / "openvino"),
        }  # fmt: skip
        self.supervisor = Supervisor(self.config.output, base)
        say(f"rows of transformers run in {self.peer_dtype}, each row in a process of its own")
        for number in range(self.config.passes):
            for row in self.config.rows:
                self._attempt(row, lambda row=row, number=number: self._row(row, number))
        drift = self._attempt("drift", self._drift) if self.baseline in self.lines else None
        losses = {row: self._attempt(f"loss of {row}", lambda row=row: self._loss(row)) for row in self.lines}
        return self._result(drift, losses)

    def _attempt(self, name: str, work):
        if name in self.left_out:
            return None
        try:
            return work()
        except RuntimeError as error:
            self.left_out[name] = str(error)
            self.lines.pop(name, None)
            say(f"{name} is left out: {error}", markup=False)
            return None

    def _job(self, row: str, setting: dict) -> dict:
        kind, dtypes = parse(row), self.config.dtypes
        decoder = decoder_of(row, setting) if kind.engine == "ours" else None
        if decoder and len(decoder["dtypes"]) == 2:
            dtypes = dtypes.resolved(decoder["dtypes"])
        return {"engine": kind.engine, "decoder": decoder, "dtypes": [dtypes.of("small"), dtypes.of("large")]}

    def _row(self, row: str, number: int) -> None:
        kind = parse(row)
        if row not in self.chosen:
            self.chosen[row] = self._search(row, kind) if len(kind.settings) > 1 else kind.settings[0]
        setting = self.chosen[row]
        prompts = self.prompts[: self.config.transformers_limit] if kind.engine == "transformers" else self.prompts
        found = self.supervisor.run("measure", row, number, setting, prompts, self._job(row, setting))
        self.lines.setdefault(row, []).extend(found)

    def _search(self, row: str, kind) -> dict:
        speeds = []
        for setting in kind.settings:
            found = self.supervisor.run("search", row, 0, setting, self.searched, self._job(row, setting))
            speeds.append(sum(r["seconds"] for r in found) / sum(r["tokens"] for r in found))
            say(f"{row} {setting}: {1 / speeds[-1]:.2f} tokens/s", markup=False)
        return kind.settings[speeds.index(min(speeds))]

    def _drift(self) -> dict:
        row, some = self.baseline, self.prompts[:CHECKED]
        again = self.supervisor.run("check", row, 0, self.chosen[row], some, self._job(row, self.chosen[row]))
        return ratio(seconds_per_token(self.lines[row]), seconds_per_token(again))

    def _loss(self, row: str) -> float | None:
        job = self._job(row, self.chosen[row])
        if job["decoder"] is None or exact(job["decoder"]) or "large" not in self.lines:
            return None
        own = {line["prompt"]: line["answer"] for line in self.lines["large"]}
        written = {line["prompt"]: line["answer"] for line in self.lines[row]}
        texts = {"answers": [written[p.id] for p in self.prompts], "references": [own[p.id] for p in self.prompts]}
        judged = self._job("large", {}) | {"engine": "judge", "decoder": None} | texts
        found = self.supervisor.run("loss", row, 0, self.chosen[row], self.prompts, judged)
        return sum(line["loss"] for line in found) / len(found)

    def _texts(self, row: str) -> dict[str, str]:
        decode = lambda ids: self.tokenizer.decode(ids, skip_special_tokens=True)  # noqa: E731
        return {r["prompt"]: r["text"] if "text" in r else decode(r["answer"]) for r in self.lines[row]}

    def _result(self, drift: dict | None, losses: dict) -> dict:
        base = seconds_per_token(self.lines[self.baseline]) if self.baseline in self.lines else None
        own, rows = self._texts("large") if "large" in self.lines else None, {}
        for row, lines in self.lines.items():
            drafts = parse(row) is TUNED or "length" in self.chosen[row]
            name = row if not self.chosen[row] or ":" in row else f"{row} {self.chosen[row]}"
            found = figures(lines, base, self._texts(row), own, self.config.max_new_tokens, drafts)
            rows[name] = found | {"loss": losses.get(row), "setting": self.chosen[row]}
        return {
            "prompts": len(self.prompts), "baseline": self.baseline, "peer_dtype": self.peer_dtype, "drift": drift,
            "left_out": self.left_out, "rows": rows,
        }  # fmt: skip
