"""The sandbox: nothing that an answer does hangs, fills or leaves the machine, and no shortcut counts as a pass."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from train.common.cli import InputError
from train.quality.graders.python_answers import passes_tests
from train.quality.sandbox.sandbox import CHILD, Limits, _talk, check_walls, isolation, run

LIMITS = Limits(cpu=1, wall=10.0, memory=1 << 28)
PROMPT = '''Complete the following Python function.

def double(x):
    """Twice x.
    >>> double(2)
    4
    >>> double(5)
    10
    """
'''


def fenced(code):
    return f"Sure:\n```python\n{code}\n```\nThat is all."


BAD = {
    "endless loop": "    while True: pass",
    "ignores the CPU limit": "    import signal as s\n    s.signal(s.SIGXCPU, s.SIG_IGN)\n    while True: pass",
    "memory": "    y = []\n    while True: y.append(bytes(10**7))",
    "memory at once": "    y = bytes(10**10)\n    return 2 * x",
    "forks": "    import os\n    while True:\n        try: os.fork()\n        except OSError: pass",
    "starts a program": "    import subprocess\n    subprocess.run(['true'])\n    return 2 * x",
    "multiprocessing": "    from multiprocessing import Process\n    Process(target=print).start()\n    return 2 * x",
    "reads stdin": "    return 2 * int(input() or x)",
    "prints much": fenced("print('a' * 10**7)\ndef double(x): return 2 * x"),
    "prints much in a test": "    print('a' * 10**7)\n    return 2 * x",
    "writes much": "    open('big', 'w').write('a' * 10**7)\n    return 2 * x",
    "opens a socket": "    import socket\n    socket.socket()\n    return 2 * x",
    "removes": "    import shutil\n    shutil.rmtree('.')\n    return 2 * x",
    "leaves at once": fenced("import os\nos._exit(0)\ndef double(x): return 2 * x"),
    "leaves in a test": "    import os\n    os._exit(0)",
    "sys.exit": "    import sys\n    sys.exit(0)",
    "exits at once": fenced("def double(x): return 2 * x\nraise SystemExit(0)"),
    "crashes": "    import faulthandler\n    faulthandler._sigsegv()",
    "recursion": "    return double(x)",
    "equals everything": fenced("class Any:\n    def __eq__(self, o): return True\ndef double(x): return Any()"),
    "prints what the tests would": fenced("print('4')\nprint('10')\ndef double(x): return None"),
    "replies itself": fenced(
        "import os\nfor fd in range(3, 20):\n    try: os.write(fd, b'x' * 32 + b'[]')\n    except OSError: pass"
    ),
    "defines nothing": "I am sorry, I cannot do that.",
    "defines another": fenced("def triple(x): return 3 * x"),
    "only the docstring": PROMPT,
    "says nothing": "",
    "passes": "    pass",
    "wrong": "    return 3 * x",
}


@pytest.mark.parametrize("answer", BAD.values(), ids=BAD)
def test_scores_nothing_within_the_limits(answer):
    start = time.monotonic()
    assert passes_tests(PROMPT, None, answer, LIMITS) == 0.0
    assert time.monotonic() - start < 4 * LIMITS.wall


GOOD = {
    "body": "    return 2 * x\n",
    "body without its indent": "return 2 * x",
    "body, then prose": "    return 2 * x\n\nThis doubles x.",
    "body in a fence": fenced("    return 2 * x"),
    "function in a fence": fenced("def double(x):\n    return 2 * x"),
    "unclosed fence": "```python\ndef double(x):\n    return 2 * x",
    "function in prose": "Here it is:\n\ndef double(x):\n    return x + x\n\nIt adds x to itself.",
    "second fence": "```\npip install double\n```\n" + fenced("def double(x):\n    return 2 * x"),
    "two fences": fenced("def half(x): return x") + fenced("def double(x): return 2 * half(x)"),
    "prints something": "    print('debug')\n    return 2 * x",
    "a float": "    return 2.0 * x",
    "dataclass": fenced(
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int'\ndef double(x): return 2 * A(x).x"
    ),
    "main guard": fenced("def double(x): return 2 * x\nif __name__ == '__main__':\n    print(double(int(input())))"),
}


@pytest.mark.parametrize("answer", GOOD.values(), ids=GOOD)
def test_right_answers_pass_in_every_shape(answer):
    assert passes_tests(PROMPT, None, answer, LIMITS) == 1.0


MBPP = "Write a function to find the shared elements. Your code should pass these tests:\n\n{}\n"


@pytest.mark.parametrize(
    ("tests", "code", "score"),
    [
        ("assert set(shared((3, 4), (5, 4))) == set((4,))", "def shared(a, b): return tuple(set(a) & set(b))", 1.0),
        ("assert shared(1, 2) == 3\nassert shared(2, 2) == 4", "def shared(a, b): return 3", 0.0),
        ("assert shared(1, 2) == 3", "class A:\n    __eq__ = lambda *_: True\ndef shared(a, b): return A()", 0.0),
        ("assert abs(shared(1, 2) - 3.1) < 0.001", "def abs(x): return 0\ndef shared(a, b): return 1", 0.0),
        ("assert abs(shared(1, 2) - 3.1) < 0.2", "def shared(a, b): return 3", 1.0),
        (
            "assert abs(shared(1, 2) - 9) < 0.2",
            "import builtins\nbuiltins.abs = lambda x: 0\ndef shared(a, b): return 3",
            0.0,
        ),
        ("assert sum(10, 15) == 6\nassert sum(100, 150) == 93", "def sum(a, b): return {10: 6, 100: 93}[a]", 1.0),
        ("assert shared(1, 2)", "def shared(a, b): return [0]", 1.0),
        ("assert shared(1, 2)", "def shared(a, b): return []", 0.0),
        ("assert not shared(1, 2)", "def shared(a, b): return []", 1.0),
        ("assert 1 in shared(1, 2), 'message'", "def shared(a, b): return [a]", 1.0),
        ("assert 1 < shared(1, 2) < 3", "def shared(a, b): return b", 1.0),
        ("assert shared(1, 2) is None", "def shared(a, b): pass", 1.0),
        ("assert shared(1, 2) == float('inf')", "def shared(a, b): return float('inf')", 1.0),
        ("assert shared(1, 2) < 'a'", "def shared(a, b): return 1", 0.0),
    ],
)
def test_asserts_in_the_prompt(tests, code, score):
    assert passes_tests(MBPP.format(tests), None, fenced(code), LIMITS) == score


@pytest.mark.parametrize(("code", "score"), [("def shared(a, b): return 3", 1.0), ("def shared(a, b): return 4", 0.0)])
def test_asserts_in_the_reference(code, score):
    assert passes_tests("Write a function.", "assert shared(1, 2) == 3", fenced(code), LIMITS) == score


def test_examples_that_raise_print_or_set_up():
    prompt = (
        '```python\ndef f(x):\n    """\n    >>> y = f(1)\n    >>> y\n    1\n'
        "    >>> f(0)\n    Traceback (most recent call last):\n    ...\n    ValueError: zero\n"
        '    >>> print("a", f(2))\n    a 2\n    """\n```\nWrite it.'
    )
    right = "    if not x:\n        raise ValueError('zero')\n    return x"
    assert passes_tests(prompt, None, right, LIMITS) == 1.0
    assert passes_tests(prompt, None, right.replace("zero", "none"), LIMITS) == 0.0
    assert passes_tests(prompt, None, "    return x or 1", LIMITS) == 0.0


@pytest.mark.parametrize(
    "prompt",
    [
        "Write a poem.",
        "Complete:\n\ndef f(x):\n    '''No examples.'''\n",
        "def f(x):\n    '''\n    >>> y = f(1)\n    '''\n",  # nothing is compared
        "def f(x):\n    '''\n    >>> f(1\n    2\n    '''\n",  # no Python
        "assert that this is no Python",
        "",
    ],
)
def test_a_prompt_without_tests_is_not_graded(prompt):
    assert passes_tests(prompt, "    return x", "    return x", LIMITS) is None


@pytest.mark.parametrize("line", ["import a\n", "def double(x):\n", "x = (\n", "```python\n", "    if x:\n", "("])
def test_a_looping_answer_is_read_in_no_time(line):
    """Every start of code was once tried with every end: 3000 lines of "import a" took half a minute."""
    start = time.monotonic()
    assert passes_tests(PROMPT, None, line * 3000, LIMITS) == 0.0
    assert time.monotonic() - start < 10


def test_helpers_of_the_prompt_are_there():
    prompt = 'import math\n\ndef half(x):\n    return x / 2\n\ndef f(x):\n    """\n    >>> f(16)\n    2.0\n    """\n'
    assert passes_tests(prompt, None, fenced("def f(x):\n    return math.sqrt(half(x)) / math.sqrt(2)"), LIMITS) == 1.0


def test_replies_say_what_each_expression_gave():
    replies = run("x = 1", ["x", "print('a')", "x = 2", "x", "1 / 0"], limits=LIMITS)
    assert [r.get("value") for r in replies] == ["1", "None", "", "2", None]
    assert replies[1]["printed"] == "a\n" and replies[4] == {"raised": "ZeroDivisionError: division by zero"}


def test_it_sees_no_environment_and_no_files_are_left(monkeypatch, tmp_path):
    monkeypatch.setenv("A_SECRET", "1")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    program = "import os, sys\nopen('mine', 'w').close()"
    replies = run(program, ["os.environ.get('A_SECRET')", "sys.flags.isolated", "sys.stdin.read()"], limits=LIMITS)
    assert [r["value"] for r in replies] == ["None", "1", "''"]
    assert not list(tmp_path.iterdir())


def test_files_elsewhere_are_refused(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("kept")
    tmp_path.chmod(0o777)
    for code in (
        f"open({str(mine)!r}, 'w')",
        f"open({str(tmp_path / 'new')!r}, 'w')",
        f"import os; os.remove({str(mine)!r})",
    ):
        (reply,) = run("", [code], limits=LIMITS)
        assert reply["raised"].startswith("PermissionError")
    assert mine.read_text() == "kept" and list(tmp_path.iterdir()) == [mine]


ESCAPES = {
    "the file class below open": "__import__('_io').FileIO('{0}/new', 'w')",
    "a file by its folder's descriptor": "(o := __import__('os')).open('new', o.O_CREAT | o.O_WRONLY, "
    "dir_fd=o.open('{0}', o.O_PATH))",
    "a folder": "__import__('os').mkdir('{0}/new')",
    "a database": "__import__('sqlite3').connect('{0}/new').execute('create table a (b)')",
    "a program that is started below subprocess": "__import__('_posixsubprocess').fork_exec([b'/bin/touch', "
    "b'{0}/new'], [b'/bin/touch'], True, (), None, None, -1, -1, -1, -1, -1, -1, -1, -1, False, False, -1, None, "
    "None, None, -1, None, True)",
}
NATIVE = {
    "creat": (b"{0}/new", 0o666),
    "truncate": (b"{0}/mine", 0),
    "unlink": (b"{0}/mine",),
    "chmod": (b"{0}/mine", 0o600),
    "setxattr": (b"{0}/mine", b"user.a", b"1", 1, 0),
    "fork": (),
    "socket": (1, 1, 0),
    "setuid": (0,),
}


@pytest.fixture
def open_folder():
    """A folder that every user may enter and write, with a file that every user may write."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    (folder / "mine").write_text("kept")
    folder.chmod(0o777)
    (folder / "mine").chmod(0o666)
    yield folder
    shutil.rmtree(folder)


needs_walls = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the walls are Linux's")


@needs_walls
@pytest.mark.parametrize("code", ESCAPES.values(), ids=ESCAPES)
def test_nothing_leaves_below_the_audited_functions(code, open_folder):
    run("", [code.format(open_folder)], limits=LIMITS)
    time.sleep(0.1)  # a program that was started would write by now
    assert [path.name for path in open_folder.iterdir()] == ["mine"]


@needs_walls
def test_native_code_is_held_too(open_folder):
    """The walls are built by the same file, without the audit hook: this is what native code would meet."""
    calls = [
        (name, [a.replace(b"{0}", os.fsencode(open_folder)) if isinstance(a, bytes) else a for a in arguments])
        for name, arguments in NATIVE.items()
    ]
    wall = CHILD.with_name("wall.py")
    program = (
        f"import ctypes, os, runpy\nassert runpy.run_path({str(wall)!r})['build'](os.getcwd()) == []\n"
        f"libc = ctypes.CDLL(None)\nprint([getattr(libc, n)(*a) for n, a in {calls}], 0 in os.getresuid())"
    )
    with tempfile.TemporaryDirectory(dir="/tmp") as own:
        os.chmod(own, 0o777)
        shown = subprocess.run([sys.executable, "-I", "-c", program], cwd=own, capture_output=True, text=True)
    assert shown.stdout.split("\n")[0] == f"{[-1] * len(calls)} False", shown.stderr
    assert (open_folder / "mine").read_text() == "kept" and (open_folder / "mine").stat().st_mode & 0o777 == 0o666


@needs_walls
@pytest.mark.parametrize("path", ["/etc/passwd", "/etc/shadow", str(Path.home()), __file__])
def test_only_pythons_own_files_are_read(path):
    (reply,) = run("", [f"(o := __import__('os')).read(o.open({path!r}, 0), 1)"], limits=LIMITS)
    assert reply["raised"].startswith("PermissionError")


TAKES_OVER = """
import sys
def shared(a, b): return None
sys.modules["__main__"].evaluate = lambda source, space: {"printed": "", "value": "3"}
"""


@pytest.mark.parametrize(
    "test", ["assert shared(1, 2) == 4", "assert shared(1, 2) == set((4,))", "assert shared(1, 2) == math.sqrt(16)"]
)
def test_code_that_takes_over_its_process_is_judged_outside(test):
    assert passes_tests(MBPP.format(test), None, fenced(TAKES_OVER), LIMITS) == 0.0


@pytest.mark.parametrize(
    "report", ["[]", '{"missing": [], "replies": []}', '{"missing": [], "replies": [3]}', "[" * 10**5, "1" * 10**6]
)
def test_a_forged_report_is_a_failure(report):
    program = f"""
import os
for channel in range(3, 20):
    try: token = os.read(channel, 100).strip()
    except OSError: continue
    if token: break
for report in range(3, 20):
    try: os.write(report, token + {report!r}.encode())
    except OSError: pass
os._exit(0)
"""
    assert run(program, ["1"], limits=LIMITS) is None


def test_where_a_sandbox_cannot_be_set_up_nothing_is_graded(monkeypatch, tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("raise SystemExit(1)")
    monkeypatch.setattr("train.quality.sandbox.sandbox.CHILD", script)
    check_walls.cache_clear()
    with pytest.raises(InputError, match="no program can be run apart here"):
        run("", ["1"], limits=LIMITS)
    check_walls.cache_clear()


def test_missing_walls_are_said_once(monkeypatch, capsys):
    monkeypatch.setattr("train.quality.sandbox.sandbox.isolation", lambda: ())
    check_walls.cache_clear()
    for _ in range(2):
        run("", ["1"], limits=LIMITS)
    assert " ".join(capsys.readouterr().out.split()).count("where namespaces are missing") == 1
    check_walls.cache_clear()


def test_an_endless_sleep_is_ended():
    start = time.monotonic()
    assert passes_tests(PROMPT, None, "    import time\n    time.sleep(100)", Limits(wall=1.0)) == 0.0
    assert time.monotonic() - start < 50


def test_processes_end_with_it(tmp_path, monkeypatch):
    """A child that got away from its process group is killed with its process namespace."""
    if not isolation():
        pytest.skip("no namespaces here")
    script = tmp_path / "gets_away.py"
    # The parent lives on: it is the first process of the namespace, with whose end the child would be gone by itself.
    script.write_text("import os, time\nif os.fork() == 0:\n    os.setsid()\n    open('ran', 'w')\ntime.sleep(100)\n")
    monkeypatch.setattr("train.quality.sandbox.sandbox.CHILD", script)
    for seconds in (2.0, 8.0, 32.0):  # a busy machine takes that long to start Python
        assert _talk(b"", str(tmp_path), seconds) == b""
        if (tmp_path / "ran").exists():
            break
    assert (tmp_path / "ran").exists()
    deadline = time.monotonic() + 30  # the kernel ends a namespace in its own time
    while _running(script) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _running(script)


def _running(script: Path) -> list[str]:
    """Ids of the processes that run ``script``; one that ends meanwhile, or has ended, has no command line."""
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if str(script).encode() in Path(f"/proc/{process}/cmdline").read_bytes():
                found.append(process)
    return found


def test_the_network_is_cut_where_namespaces_work():
    if not isolation():
        pytest.skip("no namespaces here")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as packet:
        packet.sendto(b"counted by this network alone", ("127.0.0.1", 9))
    received = "[int(line.split(':')[1].split()[0]) for line in open('/proc/net/dev') if ':' in line]"
    (reply,) = run("", [received], limits=LIMITS)
    assert sum(eval(reply["value"])) == 0 < sum(eval(received))


def test_elsewhere_it_says_so(monkeypatch):
    monkeypatch.setattr("os.name", "nt")
    with pytest.raises(InputError, match="Linux or macOS"):
        run("", [])
