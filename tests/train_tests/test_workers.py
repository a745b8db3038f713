"""Workers: the same shards byte for byte whoever makes them, whatever ends a worker, and one sentence for bad input."""

import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from interrupted_jobs import Job, certified_job, files, holds, there, unfinished, write_cost
from tiny_runs import FAST, save_toys, toy_prompts, typed

from policies import Logistic, Random, Rule
from policies.decoder_spec import DecoderSpec
from train.common.preparation import load_pair
from train.fit_policy import main
from train.traces.collect_drafts import collect_drafts
from train.traces.collect_handoff import collect, explore
from train.workers import backend, crew
from train.workers.backend import WorkersFailed
from train.workers.blueprint import Blueprint
from train.workers.crew import ALONE, Workers
from train.workers.pair import Pair, PairSource
from train.workers.stage import Stage
from train.workers.stage_folder import StageFolder

NEW, META = 12, {"models": ["toys"]}
HERE = ["processes:2", "submitit:local:2", "ray:local:2"]
prompts = toy_prompts(44)


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """A saved pair, its source, and the pair itself."""
    options = save_toys(tmp_path_factory.mktemp("toys"), 40)
    source = PairSource(options["small"], options["large"])
    return SimpleNamespace(options=options, source=source, pair=load_pair(source))


def workers(toys, folder: Path, option: str = "processes:2") -> Workers:
    try:
        return Workers(backend.parse(option, "cpu", 1, folder), toys.source, folder / "workers")
    except ValueError as error:
        if "pip install" in str(error):
            pytest.skip(str(error))
        raise


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder of traces."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def hand_offs(toys, folder: Path, made_by=ALONE, some=prompts, new=NEW) -> dict[str, bytes]:
    collect(*toys.pair, some, folder, new, 3, META, crew=made_by)
    return contents(folder)


@pytest.fixture(scope="module")
def alone(toys, tmp_path_factory):
    """The traces that this process makes alone."""
    return hand_offs(toys, tmp_path_factory.mktemp("alone") / "traces")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("option", HERE)
def test_each_back_end_makes_the_same_files(toys, alone, option, tmp_path):
    """One that is killed loses nothing; a second stage is made by the same crew, and a third finds all done."""
    made_by = workers(toys, tmp_path, option)
    folder = tmp_path / "traces"
    try:
        with killing(made_by.logs, lambda: len(list(folder.glob("queue/*/taken/*"))) >= 1) as killed:
            assert hand_offs(toys, folder, made_by) == alone
        assert len(killed) == 1
        logs = [path.read_text() for path in sorted(made_by.logs.glob("worker-*.log"))]
        assert len(logs) == 2 and re.search(r"^shard \d+", "".join(logs), re.MULTILINE)
        policy = Rule("entropy", 2.0)
        explore(*toys.pair, policy, prompts, folder, NEW, 3, crew=made_by)
        again = tmp_path / "again"
        hand_offs(toys, again)
        explore(*toys.pair, policy, prompts, again, NEW, 3)
        assert contents(folder) == contents(again)
        made_by.close()
        before = sum(len(path.read_text()) for path in made_by.logs.glob("worker-*.log"))
        hand_offs(toys, folder, made_by)
        assert sum(len(path.read_text()) for path in made_by.logs.glob("worker-*.log")) == before
    finally:
        made_by.close()


class killing:
    """SIGKILL for the process that a log names last, once ``moment`` has come."""

    def __init__(self, logs: Path, *moments):
        self.logs, self.moments, self.killed = logs, moments, []
        self.thread, self.over = threading.Thread(target=self._run), threading.Event()

    def _run(self):
        for moment in self.moments:
            while not moment():
                if self.over.wait(0.002):
                    return
            before = len(self.killed)
            while len(self.killed) == before and not self.over.wait(0.002):
                self._kill_one()

    def _kill_one(self):
        for log in self.logs.glob("worker-*.log"):
            *_, last = [None, *re.findall(r"process (\d+)", log.read_text())]
            if last is not None and int(last) not in self.killed and int(last) != os.getpid():
                try:
                    os.kill(int(last), signal.SIGKILL)
                except ProcessLookupError:
                    continue
                self.killed.append(int(last))
                return

    def __enter__(self):
        self.thread.start()
        return self.killed

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_that_are_killed_at_five_moments_lose_nothing(toys, tmp_path):
    many, new = toy_prompts(160, seed=5), 48
    expected = hand_offs(toys, tmp_path / "alone", some=many, new=new)
    made_by, folder = workers(toys, tmp_path), tmp_path / "traces"
    count = lambda name: len(list(folder.glob(name)))  # noqa: E731
    moments = [
        lambda: any("process" in log.read_text() for log in made_by.logs.glob("*.log")),  # before a shard is taken
        lambda: count("queue/*/taken/*") >= 1,
        lambda: count("shard-*.parquet") >= 3,
        lambda: count("shard-*.parquet") >= 8,
        lambda: count("shard-*.parquet") >= 13,
    ]
    with killing(made_by.logs, *moments) as killed:
        assert hand_offs(toys, folder, made_by, many, new) == expected
    made_by.close()
    assert len(killed) == 5
    shards = re.findall(r"^shard (\d+)", "".join(p.read_text() for p in made_by.logs.glob("*.log")), re.MULTILINE)
    assert sorted(map(int, shards)) == sorted(set(map(int, shards)))  # nothing was made twice
    assert not [pid for pid in killed if Path(f"/proc/{pid}").exists()]


def test_drafts_are_the_same_and_workers_end_with_their_crew(toys, tmp_path):
    """Two processes, told of two stages, load the pair once each."""
    made_by = workers(toys, tmp_path)
    for name, crew_ in (("alone", ALONE), ("workers", made_by)):
        collect_drafts(*toys.pair, prompts[:24], 3, tmp_path / name / "drafts", NEW, crew=crew_)
        collect(*toys.pair, prompts[:24], tmp_path / name / "traces", NEW, 3, META, crew=crew_)
    assert contents(tmp_path / "workers" / "drafts") == contents(tmp_path / "alone" / "drafts")
    assert contents(tmp_path / "workers" / "traces") == contents(tmp_path / "alone" / "traces")
    logs = [path.read_text() for path in made_by.logs.glob("worker-*.log")]
    assert len(logs) == 2 and all(log.count("weights:") <= 1 for log in logs)
    running = [one.process for one in made_by.backend.asleep.values()]
    assert [one.poll() for one in running] == [None, None]
    made_by.close()
    assert all(one.poll() is not None for one in running)


def test_what_stopped_workers_have_made_is_taken_by_whoever_goes_on(toys, alone, tmp_path, monkeypatch):
    """The third shard is there before the first: it is kept, though this process goes on alone."""
    folder = tmp_path / "traces"
    stages = []

    class Noting(type(ALONE)):
        def made(self, stage, pair):
            stages.append((stage, pair))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hand_offs(toys, folder, Noting())
    (stage, pair), made = stages[0], []
    where, names = StageFolder.of(stage, pair), stage.names()
    stage.maker(pair)(stage.tasks[2], where.done(names[2]))
    real = Stage.maker
    monkeypatch.setattr(
        Stage, "maker", lambda self, pair: lambda task, path: made.append(path) or real(self, pair)(task, path)
    )
    assert hand_offs(toys, folder) == alone
    assert [path.name for path in made] == [name for number, name in names.items() if number != 2]


@pytest.fixture
def stage(toys, tmp_path):
    """The folder of a stage of five shards, and their names."""
    pair = Pair(toys.pair)
    tasks = {i: {"prompts": [], "seed": i} for i in range(5)}
    asked = Stage("handoff-traces", "five", tmp_path, {"max_new_tokens": 4}, tasks)
    folder = StageFolder.of(asked, pair)
    folder.write(asked, pair, toys.source)
    return folder, list(asked.names().values())


def test_no_shard_is_taken_twice_and_none_is_lost(stage):
    folder, names = stage
    taken, lock = [], threading.Lock()

    def take(owner: str, first: float) -> None:
        for name, task in folder.tasks(owner, first):
            folder.done(name).write_bytes(b"")
            with lock:
                taken.append((name, task["seed"]))

    threads = [threading.Thread(target=take, args=(f"{i}", i / 4)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [(name, i) for i, name in enumerate(names)]
    assert folder.made() == set(names) and not folder.waiting() and not list((folder.path / "taken").iterdir())


def test_a_worker_begins_at_its_share_and_goes_round(stage):
    folder, names = stage
    assert [name for name, _ in folder.tasks("1", 0.4)] == names[2:] + names[:2]


def test_what_a_lost_worker_had_taken_is_given_back(stage):
    folder, names = stage
    lost, other = folder.tasks("1.1"), folder.tasks("1.10", 0.8)
    assert next(lost)[0] == names[0] and next(other)[0] == names[4]
    assert folder.waiting() == names[1:4]
    assert folder.give_back("1.1") == [names[0]] and folder.waiting() == names[:4]
    folder.done(names[4]).write_bytes(b"")
    assert folder.give_back("1.10") == [] and folder.waiting() == names[:4]  # it was made before its worker was lost


def test_tasks_and_stages_that_differ_do_not_share_shards(toys, tmp_path):
    pair = Pair(toys.pair)
    made = lambda **changes: Stage(  # noqa: E731
        **{"kind": "texts", "title": "t", "folder": tmp_path, "settings": {"a": 1}, "tasks": {0: {"seed": 0}}} | changes
    )
    coin = lambda rate: {"x": Blueprint.of(pair.models, DecoderSpec("backoff"), Random(rate))}  # noqa: E731
    others = [
        made(settings={"a": 2}),
        made(kind="draft-traces"),
        made(blueprints=coin(0.5)),
        made(blueprints=coin(0.4)),
    ]
    digests = {one.digest(pair) for one in [made(), *others]}
    assert len(digests) == 5 and made(title="u").digest(pair) == made().digest(pair)
    assert made(blueprints=coin(0.5)).digest(pair) in digests
    assert made(tasks={0: {"seed": 1}}).names() != made().names()


class Dying:
    """A back end whose workers end at once, with or without a shard."""

    name, count, described = "dying", 2, "none"

    def __init__(self, takes: bool):
        self.takes, self.started = takes, 0

    def start(self, starts):
        self.started += len(starts)
        for start in starts if self.takes else ():
            next(StageFolder(start.folder).tasks(start.owner))
        nothing = {"stop": lambda: None, "wait": lambda: None}
        return {start.owner: SimpleNamespace(ended=lambda: "SIGKILL", **nothing) for start in starts}

    def close(self):
        pass


@pytest.mark.parametrize("takes", [True, False])
def test_after_three_losses_there_is_one_clear_error(toys, takes, tmp_path, monkeypatch):
    monkeypatch.setattr(crew, "EVERY", 0.001)
    dying = Dying(takes)
    where = "at shard 0" if takes else "before it made a shard"
    made_by = Workers(dying, toys.source, tmp_path / "workers")
    with pytest.raises(
        WorkersFailed, match=rf"^collecting traces: workers were lost 3 times {where} \(SIGKILL\); the log"
    ):
        hand_offs(toys, tmp_path / "traces", made_by)
    assert dying.started <= 8 and not made_by.at_work


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("threads:2", "--workers is 'threads:2'; write processes:N"),
        ("processes", "--workers is 'processes'; write processes:N"),
        ("processes:", "write processes:N"),
        ("processes:0", "'0' is no number of workers"),
        ("processes:-1", "'-1' is no number of workers"),
        ("processes:two", "'two' is no number of workers"),
        ("processes:2.5", "'2.5' is no number of workers"),
        ("submitit:local:0", "'0' is no number of workers"),
        ("ray:somewhere", "ADDRESS must be host:port"),
        ("ray:auto:x", "'x' is no number of workers"),
    ],
)
def test_what_is_no_back_end_is_one_sentence(option, said, toys, tmp_path, capfd):
    command = typed(toys.options | FAST | {"output": tmp_path / "runs", "workers": option})
    assert main(command) == 2
    errors = capfd.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and said in errors[0]
    assert not (tmp_path / "runs").exists()


def test_workers_are_no_help_to_a_search(toys, tmp_path, capfd):
    (tmp_path / "default").mkdir()
    (tmp_path / "default" / "run.json").write_text("{}")
    assert main([*typed(toys.options | {"output": tmp_path, "workers": "processes:2"}), "--join"]) == 2


def test_a_blueprint_decides_as_its_policy_does(toys, tmp_path):
    """Also one that was fitted, whose weights go through a file; a policy of another class goes through none."""
    rng_rows = [[0.1 * i, 0.5] for i in range(20)]
    fitted = Logistic(("entropy", "top1")).fit(rng_rows, [i % 3 == 0 for i in range(20)]).with_threshold(0.3)
    made = Blueprint.of(toys.pair, DecoderSpec("backoff", {"verify_eos": False}), fitted)
    again = Blueprint.read(tmp_path, made.save(tmp_path / "fitted.json"), toys.pair)
    assert again.digest() == made.digest() and not again.decoder.verify_eos
    assert Blueprint.of(toys.pair, DecoderSpec("backoff"), fitted).digest() != made.digest()

    class Own(Rule):
        pass

    assert made.portable and Blueprint.of(toys.pair, DecoderSpec("large")).portable
    assert not Blueprint.of(toys.pair, DecoderSpec("backoff"), Own("entropy", 1.0)).portable
    assert not Blueprint(made.decoder).portable


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_ray_node_that_is_removed_loses_nothing(toys, tmp_path):
    """Two nodes of one CPU, each with an actor; the node that is not the driver's goes away in the middle."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    if ray.is_initialized():
        ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    other = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    many, new = toy_prompts(160, seed=5), 48
    folder, gone = tmp_path / "traces", threading.Event()
    try:
        made_by = workers(toys, tmp_path, f"ray:{cluster.address}:2")

        def remove() -> None:
            while len(list(folder.glob("queue/*/taken/*"))) < 2:  # both are at work
                time.sleep(0.01)
            cluster.remove_node(other)
            gone.set()

        thread = threading.Thread(target=remove)
        thread.start()
        found = hand_offs(toys, folder, made_by, many, new)
        thread.join()
        made_by.close()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert gone.is_set()
    assert found == hand_offs(toys, tmp_path / "alone", some=many, new=new)


@pytest.fixture(scope="module")
def whole_job(tmp_path_factory):
    """The main job with a certificate, by its own process."""
    job = certified_job(tmp_path_factory.mktemp("whole"))
    job.finish()
    return job


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=lambda how: how.name)
def test_a_job_with_workers_ends_as_one_without(whole_job, how, tmp_path):
    """It is ended at five moments of its stages, at some of which shards are there out of their order."""
    job = Job([*whole_job.command, "--workers", "processes:2"], tmp_path / "runs" / "default", tmp_path)

    def put_seconds(folder: Path) -> None:
        shutil.copy(whole_job.folder / "tune.jsonl", folder / "tune.jsonl")

    write_cost(job.folder)
    moments = [
        there("workers/worker-2.log", 0.0, 3.0),
        there("traces/shard-00001.parquet", 0.0, 0.3),
        holds("tune.jsonl", 6, then=put_seconds),
        holds("certify.jsonl", 16, 0.0, 0.3),
        holds("texts.jsonl", 12, 0.0, 0.2),
    ]
    job.interrupt(moments, [how], seed=1)
    job.finish()
    own = {name for name in files(job.folder) if not name.startswith("workers/")}
    assert own == files(whole_job.folder) and not unfinished(job.folder)
    for name in ("traces/meta.json", *(name for name in own if name.endswith(".parquet"))):
        assert (job.folder / name).read_bytes() == (whole_job.folder / name).read_bytes(), name
    for name in ("run.json", "candidates.json", "threshold.jsonl", "certify.jsonl", "texts.jsonl"):
        assert (job.folder / name).read_bytes() == (whole_job.folder / name).read_bytes(), name
    logs = "".join(path.read_text() for path in job.folder.glob("workers/*.log"))
    left = [int(pid) for pid in re.findall(r"process (\d+)", logs) if Path(f"/proc/{pid}/cmdline").exists()]
    assert not [pid for pid in left if b"train.workers" in Path(f"/proc/{pid}/cmdline").read_bytes()]
