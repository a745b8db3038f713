"""What the pages say can be followed: links and anchors lead somewhere, every command parses, the quick ones run."""

import os
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from itertools import pairwise

import pytest
import tyro
from markdown_pages import PAGES, ROOT, anchors, blocks, broken_links, commands

EACH = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
WORDS = {page: commands(page.read_text(encoding="utf-8")) for page in PAGES}
COMMANDS = list(dict.fromkeys(tuple(words) for page in PAGES for words in WORDS[page]))
RUN = re.compile(r"runs/[\w.-]+/policy\.json")
QUICK = [
    words
    for words in COMMANDS
    if words[1:3] in (("-m", "decoding"), ("-m", "policies.export"))
    and (RUN.search(" ".join(words)) or "--list" in words)
]
PYTHON = [(page, block) for page in PAGES for block in blocks(page.read_text(encoding="utf-8"), "python")]


class Parsed(Exception):
    """Raised in place of a command's work."""


@pytest.fixture
def parsing(monkeypatch):
    """Every command ends once its options are read, by its own parser."""
    read = tyro.cli

    def parse(*args, **options):
        raise Parsed(read(*args, **options))

    monkeypatch.setattr(tyro, "cli", parse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the runs and files that the pages speak of: each policy a rule, for the pair that ships."""
    from decoding import default_pair
    from policies import Rule

    models, place = [lm.identity() for lm in default_pair()], tmp_path_factory.mktemp("pages")
    for name in {name for page in PAGES for name in RUN.findall(page.read_text(encoding="utf-8"))}:
        (place / name).parent.mkdir(parents=True)
        Rule("entropy", 2.0).save(place / name, models)
    (place / "HumanEval.jsonl").write_text('{"task_id": "a", "prompt": "b", "test": "c", "entry_point": "d"}\n')
    (place / "gsm8k.jsonl").write_text('{"question": "1 + 1?", "answer": "#### 2"}\n')
    return place


def module_of(words):
    """The module whose ``main`` the command calls, and its arguments."""
    if words[1] == "-m":
        return words[2], list(words[3:])
    return words[1].removesuffix(".py").replace("/", "."), list(words[2:])


def start(words, folder):
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=250)


@EACH
def test_links_and_anchors_lead_somewhere(page):
    assert not broken_links(page)


@EACH
def test_paths_that_are_named_are_there(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:decoding|train|policies|experiments|tests|docs)/[\w/.]+\.\w+)`", text)
    assert not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize(
    ("link", "broken"),
    [
        ("docs/tuning.md", False),
        ("docs/graders.md#humaneval-and-gsm8k-as-prompts-files", False),
        ("#the-title", False),
        ("https://example.org/x#y", False),
        ("train/fit_policy.py", False),
        ("docs/tunings.md", True),
        ("docs/graders.md#humaneval", True),
        ("#the-titles", True),
        ("train/fit_policy.py#run", True),
    ],
)
@pytest.mark.parametrize("form", ["[a]({})", "![a]({})", '[a]({} "title")', "[a][b]\n\n[b]: {}", '<a href="{}">a</a>'])
def test_the_search_for_broken_links_finds_them(form, link, broken):
    text = f"# The title\n\nNot `[a](nowhere.md)`. See {form.format(link)}\n"
    assert broken_links(ROOT / "README.md", text) == [link] * broken


def test_anchors_are_those_of_a_forge():
    text = "# A `B.c`, d & e_f\n\n## Same\n\n## Same\n\n```sh\n# no heading\n```\n\n## [Linked](x.md): 4 bits\n"
    assert anchors(text) == {"a-bc-d--e_f", "same", "same-1", "linked-4-bits"}


def test_every_page_of_docs_is_linked_from_another():
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    for page in PAGES[2:]:
        assert any(f"{page.name})" in text or f"{page.name}#" in text for other, text in texts.items() if other != page)


def test_commands_are_found_in_both_kinds_of_block():
    text = "a\n\n    python x.py a \\\n        'b c'   # d\n    ls\n\n```sh\npip install y && pytest ... -q\n```\n"
    assert commands(text) == [["pip", "install", "y"], ["pytest", "-q"], ["python", "x.py", "a", "b c"]]
    assert len(COMMANDS) > 30 and len(QUICK) > 3


@pytest.mark.parametrize("words", [c for c in COMMANDS if c[0] == "python"], ids=" ".join)
def test_each_command_parses(words, parsing):
    module, arguments = module_of(words)
    if module == "experiments.lm_eval":
        pytest.importorskip("lm_eval")  # the options are the harness's
    found = import_module(module)
    if hasattr(found, "__path__"):
        found = import_module(f"{module}.__main__")
    with pytest.raises(Parsed):
        (found.cli if module == "train.distill" else found.main)(arguments)


def test_a_command_with_a_wrong_option_does_not(parsing, capfd):
    with pytest.raises(SystemExit):
        import_module("train.fit_policy").main(["--quality-budgets", "0.1"])
    assert "--quality-budgets" in capfd.readouterr().err


@pytest.mark.parametrize("words", [c for c in COMMANDS if c[0] != "python"], ids=" ".join)
def test_what_is_installed_and_tested_is_there(words):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        for extra in re.findall(r"\.\[(.+)\]", word):
            assert set(extra.split(",")) <= set(declared)
        if word.endswith((".py", ".txt")) or word.startswith("tests/"):
            assert (ROOT / word).exists()


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("words", QUICK, ids=" ".join)
def test_each_quick_command_runs(words, folder, tmp_path):
    # Where it writes, each time anew.
    words = [str(tmp_path / "out") if before == "--output" else word for before, word in pairwise(words)]
    done = start(words, folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize(("page", "block"), PYTHON, ids=[f"{p.stem}-{i}" for i, (p, _) in enumerate(PYTHON)])
def test_each_block_of_python_runs(page, block, folder):
    done = start(["-c", block], folder)
    assert done.returncode == 0, done.stderr
