"""A decoder is one file and one line, and so is an acceptance rule: what reads the registries follows the new line."""

import inspect
import subprocess
import sys
from types import SimpleNamespace

import pytest
from tiny_runs import ROOT, save_model, toy_pair

from decoding import LM, Backoff, Exact, generate
from decoding.__main__ import main as decode
from decoding.acceptance.rules import RULES
from decoding.decoders.registry import DECODERS, DecoderKind, Setting, build_decoder
from decoding.registry import Entry
from experiments.comparison.methods import MethodError, build, catalogue, parse
from policies import Random, Rule
from policies.decoder_spec import DecoderSpec
from policies.export.__main__ import main as export

TEXT = "w5 w9 w20 w7"


class Relay(Backoff):
    """The toy: every ``every``-th token escalates, whatever the policy says."""

    def __init__(self, models, policy, every):
        policy = Rule.never() if policy is None else policy
        super().__init__(models, lambda step: policy(step) | (step.position % every == 0), verify_eos=False)
        self.every = every


class Half(Exact):
    """The toy rule: a draft that is verified exactly, but for its ``share``, which stays unused."""

    def __init__(self, share=0.5):
        self.share = share


RELAY = DecoderKind(
    "decoders.relay:Relay",
    "the models take turns",
    {"every": Setting(2, 1, "the large model writes each token at a multiple of this")},
    role="handoff",
    policy="optional",
)


@pytest.fixture
def relay(monkeypatch):
    """The toy decoder, by its file and its line."""
    monkeypatch.setitem(sys.modules, "decoding.decoders.relay", SimpleNamespace(Relay=Relay))
    monkeypatch.setitem(DECODERS, "relay", RELAY)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Folders of a small and a large model."""
    folder = tmp_path_factory.mktemp("pair")
    return save_model(folder / "small", seed=1, layers=1), save_model(folder / "large", seed=2, layers=2)


@pytest.fixture
def run(pair, capsys):
    """Call the command line on the pair; returns (exit code, standard output, standard error)."""

    def call(*arguments):
        capsys.readouterr()
        models = ["--small", pair[0], "--large", pair[1]]
        return decode([*models, "--max-new-tokens", "20", TEXT, *map(str, arguments)]), *capsys.readouterr()

    return call


def answer(pair, *settings) -> str:
    """What the toy writes, and a line end."""
    models = [LM.load(folder) for folder in pair]
    tokenizer = models[-1].tokenizer
    ids = tokenizer(f"w3 {TEXT} w4", return_tensors="pt")["input_ids"]
    found = generate(Relay(models, *settings), ids, max_new_tokens=20, seed=0).sequences[0, ids.shape[1] :]
    return tokenizer.decode(found, skip_special_tokens=True) + "\n"


def test_the_command_line_offers_a_new_decoder_and_its_settings(relay, pair, run, capsys):
    assert run("--method", "relay")[:2] == (0, answer(pair, None, 2))
    assert run("--method", "relay", "--every", 3)[:2] == (0, answer(pair, None, 3)) != run("--method", "relay")[:2]
    with pytest.raises(SystemExit) as ended:
        decode(["--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert "the models take turns" in said
    assert "--every INT" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "relay", "--beams", "2"], "leave out --beams: relay has no such setting; it is one of mtad"),
        (["--method", "large", "--every", "2"], "leave out --every: large has no such setting; it is one of relay"),
        (["--method", "relay", "--every", "0"], "--every must be at least 1, not 0"),
    ],
)
def test_the_command_line_refuses_what_a_new_decoder_cannot_have(relay, run, arguments, said):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_a_policy_file_names_a_new_decoder(relay, pair, run, tmp_path):
    Random(0.3).save(tmp_path / "policy.json", [], {"decoder": {"name": "relay", "settings": {"every": 3}}})
    assert run("--policy", tmp_path / "policy.json")[:2] == (0, answer(pair, Random(0.3), 3))
    assert run("--policy", tmp_path / "policy.json", "--every", 4)[:2] == (0, answer(pair, Random(0.3), 4))


def test_experiments_measure_a_new_decoder(relay, tmp_path):
    pair = toy_pair()
    assert str(parse("relay")) == "relay:every=2"
    assert "relay:every=2" in catalogue() and "the models take turns" in catalogue()
    assert build(parse("relay:every=3"), pair).every == 3
    with pytest.raises(MethodError, match="every must be at least 1, not 0"):
        build(parse("relay:every=0"), pair)
    path = tmp_path / "policy.json"
    Random(0.3).save(path, [], {"decoder": {"name": "relay", "settings": {"every": 5}}})
    assert build(parse(f"policy:{path}"), pair).every == 5


def test_experiments_refuse_a_policy_that_ends_drafts(tmp_path):
    Rule.never().save(tmp_path / "policy.json", [], {"decoder": {"name": "mtad", "settings": {"beams": 2}}})
    with pytest.raises(MethodError, match="tuned to end drafts for mtad"):
        build(parse(f"policy:{tmp_path / 'policy.json'}"), toy_pair())


def test_an_export_says_that_other_engines_lack_a_new_decoder(tmp_path, capsys):
    path = tmp_path / "policy.json"
    Random(0.3).save(path, [], {"decoder": {"name": "relay", "settings": {"every": 3}}})
    asked = [str(path), "--to", "python", "--output", str(tmp_path / "out")]
    assert export(asked) == 2
    assert "tuned for the decoder relay with {'every': 3}, which only python -m decoding" in capsys.readouterr().err
    assert export([*asked, "--role", "handoff"]) == 0


def test_a_new_rule_is_followed_by_specs_and_experiments(monkeypatch):
    monkeypatch.setitem(sys.modules, "decoding.acceptance.half", SimpleNamespace(Half=Half))
    monkeypatch.setitem(RULES, "Half", Entry("acceptance.half:Half", "a toy", {"share": 0.5}))
    pair = toy_pair()
    spec = DecoderSpec("speculative", {"accept": {"name": "Half", "share": 0.25}})
    assert build_decoder(pair, None, spec).accept.share == 0.25
    assert str(parse("half")) == "half:length=4,share=0.5"
    assert build(parse("half:share=0.125"), pair).accept.share == 0.125


@pytest.mark.parametrize(("name", "entry"), [*RULES.items(), *DECODERS.items()])
def test_a_line_says_what_its_code_takes(name, entry):
    """Its settings are the keyword arguments, with the same defaults where the code has some."""
    takes = inspect.signature(entry.load()).parameters
    for key, setting in entry.settings.items():
        default = setting.default if isinstance(setting, Setting) else setting
        assert takes[key].default in (inspect.Parameter.empty, default)
    if isinstance(entry, DecoderKind):
        assert set(entry.models) <= {"small", "large"}
    else:
        assert takes.keys() == entry.settings.keys()


def test_the_registries_are_read_without_torch():
    lines = "import sys, decoding.__main__", "from experiments.comparison.registry import kinds"
    code = "; ".join([*lines, "kinds()", "assert 'torch' not in sys.modules"])
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
