"""Every command ends in one way: 2 and a sentence, 130 and a line after Ctrl-C, a traceback for a fault of ours."""

import ast
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from decoding.cli.ending import OURS
from decoding.errors import MemoryTooSmall, UnwritableText
from train.baselines.subprocess_engine import EngineEnded
from train.common.cli import InputError, attempt
from train.fit_policy import main

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "fit_policy": ["train/fit_policy.py", "--small", "nowhere/at-all", "--large", "nowhere/at-all"],
    "distill": ["train/distill.py", "--target", "nowhere/at-all", "--self-prompts", "3"],
    "reinforce": ["train/reinforce.py", "nowhere"],
    "bandit": ["train/bandit.py", "nowhere"],
    "monitor": ["train/monitor.py", "nowhere", "--prompts", "nowhere.jsonl"],
    "decoding": ["-m", "decoding", "text", "--small", "nowhere/at-all"],
    "measure_cost": ["-m", "decoding.measure_cost", "--small", "nowhere/at-all"],
    "export": ["-m", "policies.export", "nowhere.json", "--to", "python", "--output", "exported"],
}
SCRIPTS = [
    path.relative_to(ROOT)
    for path in [*sorted(ROOT.glob("*/*.py")), ROOT / "policies/export/__main__.py"]
    if re.search(r"^main = command\(|^def main\(", path.read_text(), re.MULTILINE)
]
FEW = [Path(path) for path in ("train/fit_policy.py", "decoding/__main__.py", "policies/export/__main__.py")]
LM_EVAL = "experiments.lm_eval"
INTERRUPTING = """
import os, signal, sys


class Finder:
    def find_spec(name, path=None, target=None):
        if name in ("dataclasses", "inspect", "rich", "tyro", "numpy", "torch"):
            os.kill(os.getpid(), signal.SIGINT)


sys.meta_path.insert(0, Finder)
"""


def start(name, folder, **environment):
    first, *rest = COMMANDS[name]
    script = [first] if first == "-m" else [str(ROOT / first)]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(
        [sys.executable, *script, *rest],
        cwd=folder,
        env=env,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_wrong_input_is_one_sentence(name, tmp_path):
    process = start(name, tmp_path)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2, error
    assert "nowhere" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.4, 1.0, 2.0])
@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_from_the_start(name, seconds, tmp_path):
    process = start(name, tmp_path)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    # 2: it was faster. By the signal itself Python ends where that came in an exec, as dataclasses are made; a shell
    # says 130 of both.
    assert process.returncode in (130, -signal.SIGINT, 2), error
    assert "Traceback" not in error and len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("path", SCRIPTS, ids=str)
def test_each_command_takes_care_of_ctrl_c_before_it_imports_anything(path):
    body = ast.parse((ROOT / path).read_text()).body[1:]
    first = next(node for node in body if getattr(node, "module", None) != "__future__")
    imported, call = first.body
    assert ast.unparse(first.test) == "__name__ == '__main__'"
    assert imported.module.endswith(".stopping") and ast.unparse(call) == "stop_quietly()"


@pytest.mark.parametrize("name", ["fit_policy", "distill", "decoding", "measure_cost", "export"])
def test_ctrl_c_before_anything_that_takes_time(name, tmp_path):
    """It was a traceback for a quarter of a second."""
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTING)
    process = start(name, tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert process.communicate(timeout=60)[1] == "\nstopped\n"
    assert process.returncode == 130


def unread(*command):
    """(exit code, standard error) of a command whose standard output nobody reads, from its first byte on."""
    reading, writing = os.pipe()
    os.close(reading)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command], stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env, timeout=120
    )
    os.close(writing)
    return done.returncode, done.stderr


@pytest.mark.parametrize("path", [pytest.param(p, marks=[pytest.mark.slow] * (p not in FEW)) for p in SCRIPTS], ids=str)
def test_help_that_nobody_reads_to_its_end_leaves_no_traceback(path):
    """`--help | head -3` ended in "Exception ignored ... BrokenPipeError"."""
    module = ".".join(path.with_suffix("").parts).removesuffix(".__main__")
    own = ["-m", module] if path.name == "__main__.py" or module in ("decoding.measure_cost", LM_EVAL) else [str(path)]
    if module == LM_EVAL:
        pytest.importorskip("lm_eval")
    assert unread(*own, "--help") in [(-signal.SIGPIPE, ""), (141, "")]


def test_output_that_nobody_reads_ends_the_job_without_a_word():
    """Also after its start, where SIGPIPE is ignored: the pipe to an engine's process may break too."""
    code = """
from decoding.cli.stopping import stop_quietly
stop_quietly()
import signal, sys
from decoding.cli.ending import ending, mendable
def job():
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN
    print("a line" * {}, flush={})
    return 0
sys.exit(ending("decoding", job, mendable))
"""
    for length, flush in ((1, True), (1, False), (10**6, False)):
        assert unread("-c", code.format(length, flush)) == (141, "")


def test_a_pipe_of_another_process_that_breaks_is_still_a_sentence():
    code = """
import sys
from decoding.cli.ending import ending, mendable
def job():
    raise BrokenPipeError(32, "Broken pipe")
sys.exit(ending("decoding", job, mendable))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (2, "decoding: [Errno 32] Broken pipe\n")


@pytest.mark.parametrize("name", [pytest.param("reinforce", marks=pytest.mark.slow), "export"])
def test_ctrl_c_while_python_ends_changes_nothing(name, tmp_path):
    """It once ended the process by the signal, after the sentence was said."""
    (tmp_path / "sitecustomize.py").write_text("import atexit, time\natexit.register(time.sleep, 1.0)\n")
    process = start(name, tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    error = process.stderr.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    error += process.communicate(timeout=120)[1]
    assert process.returncode == 2 and error.count("\n") == 1, error


def test_a_fault_of_ours_keeps_its_traceback_and_says_so():
    def broken():
        raise ZeroDivisionError("no user did this")

    with pytest.raises(ZeroDivisionError) as caught:
        attempt("fit_policy", broken)
    assert caught.value.__notes__ == [OURS]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("say what"), 2, "fit_policy: say what\n"),
        (OSError(28, "No space left on device"), 2, "fit_policy: [Errno 28] No space left on device\n"),
        (EngineEnded("llama.cpp's process has ended"), 2, "fit_policy: llama.cpp's process has ended\n"),
        (MemoryTooSmall("the caches need 9 GiB"), 2, "fit_policy: the caches need 9 GiB\n"),
        (UnwritableText("no token is left"), 2, "fit_policy: no token is left\n"),
        (FloatingPointError("the model returns NaN"), 2, "fit_policy: the model returns NaN\n"),
        (KeyboardInterrupt(), 130, "\nstopped; the same command goes on from run\n"),
    ],
    ids=["input", "disk", "engine", "memory", "text", "nan", "stop"],
)
def test_what_the_user_can_mend_is_a_sentence(error, code, said, capsys):
    def job():
        raise error

    assert attempt("fit_policy", job, Path("run")) == code
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("option", ["name", "small", "large", "prompts", "output", "storage", "grader"])
def test_a_name_that_is_no_text_is_refused_before_any_work(option, tmp_path, monkeypatch, capfd):
    """Bytes that are no UTF-8 once ended the job in its report, after all of its work."""
    monkeypatch.chdir(tmp_path)
    assert main([f"--{option}", os.fsdecode(b"mod\xffel")]) == 2
    assert capfd.readouterr().err == f"fit_policy: --{option} is 'mod\\udcffel', which is not UTF-8; rename it\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error", ["ModuleNotFoundError('no such module') from None", "ValueError('say what')", "KeyboardInterrupt"]
)
def test_ctrl_c_that_became_another_error_is_a_stop(error):
    """An import of transformers turned it into ModuleNotFoundError, whose chain does not name it."""
    code = f"""
from decoding.cli.stopping import stop_quietly
stop_quietly()
import signal, sys
from decoding.cli.ending import ending
def job():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        pass
    raise {error}
sys.exit(ending("decoding", job, lambda error: True))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (130, "\nstopped\n")
