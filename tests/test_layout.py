"""Files are where they belong: names that shadow nothing, imports in one direction, nothing unsafe to load."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("policies", "decoding", "train", "experiments")
MAY_IMPORT = {
    "policies": {"policies"},
    "decoding": {"decoding"},
    "train": {"train", "policies", "decoding"},
    "experiments": set(PACKAGES),
}
NOT_FOR_POLICIES = {"transformers"}
UNSAFE = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "shelve", "joblib", "marshal"}
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
each = pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def dependencies(module):
    """The files of ours that a file imports, functions included."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield from (found for found in (name if name in MODULES else node.module,) if found in MODULES)


def reached(module, through=lambda name: True):
    """Every file that importing ``module`` leads to."""
    found, waiting = set(), [module]
    while waiting:
        for name in dependencies(waiting.pop()):
            if name not in found and through(name):
                found.add(name)
                waiting.append(name)
    return found


def imported(tree):
    """Top-level names of everything that a file imports, functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module.split(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("__import__", "importlib.import_module"):
            name = node.args[0]
            yield name.value.split(".")[0] if isinstance(name, ast.Constant) else "anything"


def allowed(path):
    package = path.relative_to(ROOT).parts[0]
    extra = {"policies"} if path == ROOT / "decoding" / "cli" / "tuned.py" else set()
    return MAY_IMPORT[package] | extra


def loads(tree):
    """Calls that read files with a pickle inside: (what is called, whether it is told not to)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            options = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            name = ast.unparse(node.func)
            if name in ("torch.load", "load_state_dict_from_url"):
                yield name, options.get("weights_only") is True
            if name in ("np.load", "numpy.load"):
                yield name, not options.get("allow_pickle", False)


def test_there_is_something_to_look_at():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(PACKAGES)


@pytest.mark.parametrize("folder", ["train", "experiments"])
def test_scripts_are_named_like_nothing_else(folder):
    """The folder of a script comes first on sys.path: a queue.py there would be everybody's queue."""
    taken = set(sys.stdlib_module_names) | set(packages_distributions()) | set(PACKAGES)
    names = {path.stem for path in (ROOT / folder).iterdir() if path.is_dir() or path.suffix == ".py"}
    names -= {"__init__", "__main__", "__pycache__"}
    names -= {"lm_eval"}  # a command that is named as what it runs, and refuses to be a script
    assert not names & taken


@each
def test_imports_go_one_way(path):
    names = set(imported(ast.parse(path.read_text())))
    assert not (names & set(PACKAGES)) - allowed(path)
    assert "anything" not in names
    if path.is_relative_to(ROOT / "policies"):
        assert not names & NOT_FOR_POLICIES


def test_no_file_imports_itself_through_others():
    graph = {module: set(dependencies(module)) for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_decoder_brings_no_other_one():
    """Backoff is the shortest path through the engine: whoever reads it opens no rule of acceptance."""
    found = reached("decoding.decoders.backoff") | reached("decoding.generation")
    others = {
        name for name in found if name.startswith(("decoding.acceptance", "decoding.decoders", "decoding.drafting"))
    }
    assert others <= {"decoding.decoders.backoff"}


@pytest.mark.parametrize("package", ["decoding", "train"])
def test_the_top_of_a_package_can_be_read_at_a_glance(package):
    assert len(list((ROOT / package).glob("*.py"))) <= 13  # twelve and __init__


@each
def test_nothing_loads_a_pickle(path):
    tree = ast.parse(path.read_text())
    assert not set(imported(tree)) & UNSAFE
    assert all(safe for _, safe in loads(tree))


@pytest.mark.parametrize(
    ("source", "safe"),
    [
        ("torch.load(x)", False),
        ("torch.load(x, weights_only=False)", False),
        ("torch.load(x, weights_only=True)", True),
        ("np.load(x, allow_pickle=True)", False),
        ("np.load(x)", True),
    ],
)
def test_the_search_for_pickles_finds_them(source, safe):
    assert [found for _, found in loads(ast.parse(source))] == [safe]


def test_the_search_for_imports_looks_into_functions():
    source = "import a.b\ndef f():\n    from c.d import e\n    __import__('g.h')\n"
    assert list(imported(ast.parse(source))) == ["a", "c", "g"]


def test_importing_is_light():
    """policies brings no transformers; neither brings a heavy library, starts CUDA, or touches the global seed."""
    code = """
import sys, policies, policies.export.__main__
assert "torch" not in sys.modules, "--help would wait"
import torch
state = torch.random.get_rng_state()
from policies import *
assert not {"transformers", "sklearn", "decoding", "train", "experiments"} & set(sys.modules), "policies"
import decoding
heavy = {"sklearn", "train", "experiments", "optuna", "datasets", "wandb", "matplotlib", "plotly", "gguf"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert not torch.cuda.is_initialized()
assert torch.equal(state, torch.random.get_rng_state())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_table_of_architectures_is_complete():
    """A row for every architecture that is served, with its attention, and a tiny model of each in the tests."""
    import transformers
    from tiny_models import KINDS

    from decoding.models.architectures import ATTENTION

    text = (ROOT / "docs" / "architectures.md").read_text()
    rows = dict(re.findall(r"^\| [^|]+ \| `(\w+)` \| slots, (\w+)", text, re.MULTILINE))
    assert rows == {kind: name.removesuffix("_sdpa") for kind, name in ATTENTION.items()}
    assert {getattr(transformers, name + "Config").model_type for name, _ in KINDS.values()} == set(ATTENTION)
