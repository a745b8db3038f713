"""Traces: what is logged is what a policy saw live, shards are made once, and nothing foreign is read."""

import os
import platform
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from tiny_runs import toy_pair, toy_prompts

from decoding import Autoregressive, Backoff, generate
from decoding.models.settings import end_tokens
from policies import Random, Rule, feature_columns, history_for, token_classes
from policies.features.table import WINDOW
from policies.storage import documents
from policies.storage.documents import FileError
from policies.storage.shards import shard_path, write_shard
from train.quality.guarded_regret import CAP, STOP, guarded_regret, score
from train.quality.loops import token_forms
from train.search.labels import KL_CUT, labels
from train.traces import collect_handoff as collecting
from train.traces.collect_handoff import collect, explore
from train.traces.handoff_traces import FEATURE_COLUMNS, SCHEMA, read_traces

NEW = 24
META = {"models": ["tiny"], "seed": 3}
prompts = toy_prompts(20)


@pytest.fixture(scope="module")
def pair():
    return toy_pair()


@pytest.fixture(scope="module")
def collected(pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "traces"
    collect(*pair, prompts, folder, NEW, 3, META)
    return folder


@pytest.fixture
def folder(collected, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(collected, tmp_path / "traces")


@pytest.fixture(scope="module")
def traces(collected):
    return read_traces(collected)


class Recorder:
    """Hands off as ``Random`` does, and keeps every feature that it could have seen."""

    history, window = history_for(FEATURE_COLUMNS), WINDOW

    def __init__(self, rate, classes):
        self.policy, self.classes, self.seen = Random(rate), classes, []

    def observe(self, step):
        return feature_columns(step, self.history)

    def __call__(self, step):
        self.seen.append(feature_columns(step, FEATURE_COLUMNS, self.history, self.classes)[0])
        return self.policy(step)


def test_logged_features_are_what_a_policy_saw_live(pair, traces):
    classes = token_classes(pair[1].tokenizer)
    unknown = 0
    for i, prompt in enumerate(prompts):
        rows = traces.of({prompt.id}, "mixed")
        recorder = Recorder(float(rows["rate"][0]), classes)
        # The trace's hand-offs are those of this rate and seed.
        seed = 3 + i
        result = generate(Backoff(pair, recorder), torch.tensor([prompt.ids]), max_new_tokens=NEW, seed=seed)
        assert result.sequences[0, len(prompt.ids) :].tolist() == rows["token"].tolist()
        assert result.writers[0].tolist() == rows["writer"].tolist()
        live = torch.stack(recorder.seen).numpy()
        for j, name in enumerate(FEATURE_COLUMNS):
            np.testing.assert_allclose(rows[name], live[:, j], rtol=1e-3, atol=2e-5, equal_nan=True, err_msg=name)
        unknown += int(np.isnan(live).sum())
    assert unknown > 0
    for name in FEATURE_COLUMNS:  # a column that is always the same would agree for nothing
        if not name.startswith("last_is"):
            assert len(np.unique(traces[name])) > 1, name


def test_the_large_trajectory_is_the_large_model_alone(pair, traces):
    early = 0
    for prompt in prompts:
        rows = traces.of({prompt.id}, "large")
        answer = generate(Autoregressive(pair[1]), torch.tensor([prompt.ids]), max_new_tokens=NEW).sequences[0]
        assert rows["token"].tolist() == rows["large_token"].tolist() == answer[len(prompt.ids) :].tolist()
        assert (rows["writer"] == 1).all()
        assert (rows["rate"] == 1).all()
        assert (rows["since_large"] == 0).all()
        assert np.isnan(rows["agreed"][0])
        assert (rows["agreed"][1:] == (rows["small_token"] == rows["large_token"])[:-1]).all()
        early += len(rows) < NEW
    assert 0 < early < len(prompts)


def test_one_row_per_written_position(traces):
    assert len(traces.starts) == 2 * len(prompts) + 1
    for start, end in zip(traces.starts[:-1], traces.starts[1:], strict=True):
        assert traces["position"][start:end].tolist() == list(range(end - start))
        assert 1 <= end - start <= NEW
        for name in ("prompt", "group", "trajectory", "rate", "prompt_tokens"):
            assert len(set(traces[name][start:end].tolist())) == 1
    assert traces.trajectory_of.tolist() == np.repeat(range(40), np.diff(traces.starts)).tolist()
    assert dict(zip(traces["prompt"], traces["group"], strict=True)) == {p.id: p.group for p in prompts}
    assert dict(zip(traces["prompt"], traces["prompt_tokens"], strict=True)) == {p.id: len(p.ids) for p in prompts}
    rates = np.unique(traces["rate"][traces["trajectory"] == "mixed"])
    assert len(rates) == 3  # shards
    assert rates.min() >= 0.1
    assert rates.max() <= 0.9


@torch.no_grad()
def test_what_both_models_thought(pair, traces):
    for prompt in prompts[:3]:
        for kind in ("large", "mixed"):
            rows = traces.of({prompt.id}, kind)
            text = list(prompt.ids)
            for i, token in enumerate(rows["token"].tolist()):
                q, p = (lm.model(torch.tensor([text])).logits[0, -1].double().log_softmax(-1) for lm in pair)
                a, b = int(q.argmax()), int(p.argmax())
                kl = sum(float(q[v].exp() * (q[v] - p[v])) for v in range(len(q)))
                assert (rows["small_token"][i], rows["large_token"][i]) == (a, b)
                expected = {
                    "small_logprob": q[token],
                    "large_logprob": p[token],
                    "small_logprob_small": q[a],
                    "large_logprob_small": p[a],
                    "regret": p.max() - p[a],
                    "kl": kl,
                }
                for name, value in expected.items():
                    assert rows[name][i] == pytest.approx(float(value), abs=1e-3), name
                text.append(token)


def test_labels(traces):
    names = ("regret", "small_repeats", "large_repeats", "small_ends", "large_ends")
    rows = zip(*(traces[name].tolist() for name in names), strict=True)
    assert labels(traces, "regret").tolist() == pytest.approx(
        [
            (1 if again or (stop and not end and r > STOP) else min(r, CAP) / CAP) * (not too)
            for r, again, too, end, stop in rows
        ]
    )
    assert labels(traces, "kl").mean() == pytest.approx(0.5, abs=1 / len(traces))
    for cut in (KL_CUT, 0.1):
        assert labels(traces, "kl", cut).tolist() == [float(x > cut) for x in traces["kl"]]
    differ = labels(traces, "disagree")
    assert differ.tolist() == [a != b for a, b in zip(traces["small_token"], traces["large_token"], strict=True)]
    assert ((traces["regret"] > 0) == (differ == 1)).all()
    assert 0.1 < differ.mean() < 0.9


def test_a_policy_is_traced_on_its_own_path(pair, folder):
    policy = Rule("entropy", 2.0)
    explore(*pair, policy, prompts, folder, NEW, 3)
    traces = read_traces(folder)
    assert len(traces.starts) == 3 * len(prompts) + 1
    for prompt in prompts:
        rows = traces.of({prompt.id}, "policy")
        result = generate(Backoff(pair, policy), torch.tensor([prompt.ids]), max_new_tokens=NEW, seed=3)
        assert result.sequences[0, len(prompt.ids) :].tolist() == rows["token"].tolist()
        assert result.writers[0].tolist() == rows["writer"].tolist()
        handed = policy.score_table(rows.table(policy.names)).numpy() >= 2.0
        assert ((handed | rows["small_ends"]) == (rows["writer"] == 1)).all()
    before = [path.stat().st_mtime_ns for path in sorted(folder.iterdir())]
    explore(*pair, policy, prompts, folder, NEW, 3)
    assert [path.stat().st_mtime_ns for path in sorted(folder.iterdir())] == before


def test_the_costs_of_what_was_written_sum_to_the_loss(pair, folder):
    """On a policy's own path the traces' costs of who wrote each token are its guarded regret, stops aside."""
    explore(*pair, Rule("entropy", 2.0), prompts, folder, NEW, 3)
    traces = read_traces(folder)
    checked = 0
    for prompt in prompts:
        own, rows = traces.of({prompt.id}, "large")["token"].tolist(), traces.of({prompt.id}, "policy")
        answer = rows["token"].tolist()
        (judged,) = score(pair[1], [prompt.ids], [answer])
        late = rows["large_ends"] & ~rows["small_ends"] & (rows["regret"] > STOP) & (rows["writer"] == 0)
        if not late.any():
            cost = np.where(rows["writer"] == 1, rows.large_cost, rows.small_cost)
            forms = token_forms(pair[1].tokenizer)
            loss = guarded_regret(judged, answer, own, end_tokens(pair[1]), forms)
            assert cost.mean() == pytest.approx(loss, abs=1e-4)
            checked += 1
    assert checked > len(prompts) / 2


def test_only_a_missing_shard_is_made_again(pair, folder):
    paths = [shard_path(folder, i) for i in range(3)]
    assert sorted(folder.glob("*.parquet")) == paths
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}
    paths[1].unlink()
    (folder / f"{paths[1].name}.{platform.node()}.{10**30}.tmp").write_bytes(b"half a shard")  # what a kill leaves
    collect(*pair, prompts, folder, NEW, 3, META)
    for path in paths:
        content, when = before[path]
        assert path.read_bytes() == content
        assert (path.stat().st_mtime_ns == when) == (path != paths[1])
    assert not list(folder.glob("*.tmp"))


def test_finished_traces_ask_no_model(pair, folder, monkeypatch):
    monkeypatch.setattr(collecting, "write", None)
    collect(*pair, prompts, folder, NEW, 3, META)


def test_another_run_is_refused(pair, folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for other in (META | {"seed": 4}, META | {"models": ["other"]}, {"seed": 3}):
        with pytest.raises(FileError, match="traces of another run") as error:
            collect(*pair, prompts, folder, NEW, 3, other)
        assert "\n" not in str(error.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_reading_leaves_nothing_behind(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    before = sorted(tmp_path.rglob("*"))
    read_traces(folder)
    assert sorted(tmp_path.rglob("*")) == before


def refused(folder, match):
    with pytest.raises(FileError, match=match) as error:
        read_traces(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PAR1 not really PAR1", None], ids=["empty", "garbage", "cut"])
def test_a_corrupt_shard_is_refused(folder, content):
    path = shard_path(folder, 1)
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    refused(folder, "shard-00001.parquet: it was changed after it was written")
    forget_checksums(folder)
    refused(folder, "shard-00001.parquet: it cannot be read")


def forget_checksums(folder):
    """As an earlier version wrote the folder."""
    (folder / "checksums.jsonl").unlink()


def rewrite(folder, change):
    """Every shard with ``change`` (table, number)."""
    forget_checksums(folder)
    for i, path in enumerate(sorted(folder.glob("*.parquet"))):
        parquet.write_table(change(parquet.read_table(path), i), path)


def with_column(table, name, values):
    return table.set_column(table.column_names.index(name), name, [values])


def test_shards_of_an_earlier_version_are_read(folder, traces):
    forget_checksums(folder)
    assert (read_traces(folder)["regret"] == traces["regret"]).all()


def test_a_flipped_bit_is_noticed(folder):
    path = shard_path(folder, 1)
    before = path.read_bytes()
    for where in range(0, len(before), len(before) // 20):
        path.write_bytes(before[:where] + bytes([before[where] ^ 1]) + before[where + 1 :])
        refused(folder, "shard-00001.parquet: it was changed after it was written")


def test_a_shard_of_another_run_is_refused(pair, folder, tmp_path):
    collect(*pair, prompts[:8], tmp_path / "other", NEW, 9, META | {"seed": 9})
    shutil.copy(shard_path(tmp_path / "other", 0), shard_path(folder, 0))
    refused(folder, "shard-00000.parquet: it was changed after it was written")


@pytest.mark.parametrize("name", ["regret", "prompt", "kl", "agreed"])
def test_nulls_are_refused(folder, name):
    rewrite(folder, lambda table, i: with_column(table, name, pa.array([None] * len(table), table[name].type)))
    refused(folder, f"its column '{name}' is not one of numbers, or one of text")


CHANGES = {
    "a column less": lambda table: table.drop_columns("kl"),
    "text": lambda table: with_column(table, "kl", table["kl"].cast(pa.string())),
    "narrower": lambda table: with_column(table, "kl", table["kl"].cast(pa.float16())),
    "renamed": lambda table: table.rename_columns([n if n != "kl" else "lk" for n in table.column_names]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_mixed_schemas_are_refused(folder, change):
    rewrite(folder, lambda table, i: change(table) if i == 2 else table)
    refused(folder, "shard-00002.parquet: its columns are not those of shard-00000.parquet")


@pytest.mark.parametrize(("name", "values"), [("regret", ["0.5"]), ("prompt", [1]), ("small_ends", [0.5])])
def test_columns_of_another_type_are_refused(folder, name, values):
    rewrite(folder, lambda table, i: with_column(table, name, pa.array(values * len(table))))
    refused(folder, f"lack the column {name}, or have it of another type")


def test_rows_out_of_order_are_refused(folder):
    rewrite(folder, lambda table, i: table.take(list(range(len(table)))[::-1]))
    refused(folder, "not in the order of their positions")


@pytest.mark.parametrize("schema", [SCHEMA - 1, SCHEMA + 1])
def test_another_schema_is_refused(folder, schema):
    meta = documents.read(folder / "meta.json", "")
    documents.write(folder / "meta.json", meta | {"schema": schema})
    refused(folder, f"schema {schema}, this one reads {SCHEMA}")


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"schema": "x"}', "{}", '{"schema": ' + "[" * 10**5])
def test_a_damaged_description_is_refused(folder, content):
    os.remove(folder / "meta.json")
    if content is not None:
        (folder / "meta.json").write_text(content)
    refused(folder, "meta.json: ")


@pytest.mark.parametrize("name", ["regret", "prompt", "mean_entropy", "position", "small_token"])
def test_a_missing_column_is_refused(folder, name):
    rewrite(folder, lambda table, i: table.drop_columns(name))
    refused(folder, f"lack the column {name}")


def test_a_folder_without_shards_is_refused(folder):
    for path in folder.glob("*.parquet"):
        path.unlink()
    refused(folder, "holds no shards")


def test_columns_come_back_as_they_were(tmp_path, collected):
    columns = dict(read_traces(collected).columns)
    shutil.copy(collected / "meta.json", tmp_path)
    write_shard(tmp_path, 0, columns)
    again = read_traces(tmp_path).columns
    assert again.keys() == columns.keys()
    for name, column in columns.items():
        np.testing.assert_array_equal(again[name], column)
        assert again[name].dtype == column.dtype
