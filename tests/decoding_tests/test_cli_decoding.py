"""The command line of decoding: what it prints, what it refuses, and how it ends."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from saved_models import TEMPLATE, save

from decoding import LM, MTAD, Autoregressive, Backoff, Sampling, Speculative, generate
from decoding.__main__ import main
from policies import Random, Rule

ROOT = Path(__file__).parents[2]
TEXT = "w5 w9 w20 w7"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two saved models; a third with the same tokenizer, and one with another."""
    folder = tmp_path_factory.mktemp("models")
    return SimpleNamespace(
        small=save(folder / "small", seed=1),
        large=save(folder / "large", seed=2, layers=2),
        other=save(folder / "other", seed=3),
        foreign=save(folder / "foreign", seed=4, words="v"),
        untemplated=save(folder / "untemplated", seed=2, layers=2, template=None),
    )


@pytest.fixture
def run(pair, capsys):
    """Call main on the pair; returns (exit code, standard output, standard error)."""

    def call(*arguments, small=pair.small, large=pair.large):
        capsys.readouterr()  # what the test itself has loaded
        models = ["--small", small, "--large", large]
        code = main([*models, "--max-new-tokens", "20", *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


def _answer(decoder, text: str, raw: bool = False, **options) -> str:
    tokenizer = decoder.models[-1].tokenizer
    ids = tokenizer(text if raw else f"w3 {text} w4", return_tensors="pt")["input_ids"]
    sequence = generate(decoder, ids, max_new_tokens=20, **options).sequences[0]
    return tokenizer.decode(sequence[ids.shape[1] :], skip_special_tokens=True)


def _rule(path: Path, models=None, threshold: float = 1.0) -> Path:
    Rule("entropy", threshold).save(path, models and [LM.load(model).identity() for model in models])
    return path


def test_the_stream_is_the_answer_of_generate(pair, run):
    small, large = LM.load(pair.small), LM.load(pair.large)
    code, out, err = run(TEXT)
    assert (code, out) == (0, _answer(Speculative([small, large]), TEXT) + "\n")
    assert "20 tokens" in err
    assert "drafted tokens accepted" in err
    assert err.count("\n") == 2  # what the weights are held in, and the statistics
    assert run(TEXT, "--method", "large")[1] == _answer(Autoregressive(large), TEXT) + "\n" == out
    assert run(TEXT, "--method", "small")[1] == _answer(Autoregressive(small), TEXT) + "\n" != out


def test_sampling_options_arrive(pair, run):
    large, options = LM.load(pair.large), ["--method", "large", "--temperature", 1.5, "--seed", 7]
    written = {_answer(Autoregressive(large), TEXT, sampling=Sampling(1.5), seed=7) + "\n"}
    for name, value in {"top_k": 20, "top_p": 0.9, "min_p": 0.3}.items():
        answer = _answer(Autoregressive(large), TEXT, sampling=Sampling(1.5, **{name: value}), seed=7) + "\n"
        assert run(TEXT, *options, f"--{name.replace('_', '-')}", value)[1] == answer
        written.add(answer)
    assert len(written) > 2
    together = Sampling(1.5, top_k=20, top_p=0.9, min_p=0.3)
    answer = _answer(Autoregressive(large), TEXT, sampling=together, seed=7) + "\n"
    assert run(TEXT, *options, "--top-k", 20, "--top-p", 0.9, "--min-p", 0.3)[1] == answer


def test_a_policy_makes_backoff_and_stops_drafts_when_asked(pair, run, tmp_path):
    small, large = LM.load(pair.small), LM.load(pair.large)
    Random(0.5).save(tmp_path / "policy.json", [small.identity(), large.identity()])
    code, out, err = run(TEXT, "--policy", tmp_path / "policy.json")
    assert (code, out) == (0, _answer(Backoff([small, large], Random(0.5)), TEXT, seed=0) + "\n")
    assert "small wrote" in err
    assert "large wrote" in err
    assert "accepted" not in err
    code, out, err = run(TEXT, "--policy", tmp_path / "policy.json", "--method", "speculative")
    assert (code, out) == (0, _answer(Autoregressive(large), TEXT) + "\n")
    assert "drafted tokens accepted" in err


def test_mtad_is_told_its_beams_and_threshold(pair, run):
    small, large = LM.load(pair.small), LM.load(pair.large)
    code, out, err = run(TEXT, "--method", "mtad", "--beams", 3, "--length", 2, "--tau", 0.01)
    assert (code, out) == (0, _answer(MTAD([small, large], 3, 2, 0.01), TEXT) + "\n")
    assert out not in (run(TEXT)[1], run(TEXT, "--method", "mtad")[1])
    assert "drafted tokens accepted" in err


def test_raw_and_a_missing_template_leave_the_text_as_it_is(pair, run):
    answer = _answer(Autoregressive(LM.load(pair.large)), TEXT, raw=True) + "\n"
    assert run(TEXT, "--raw")[1] == answer != run(TEXT)[1]
    assert run(TEXT, large=pair.untemplated)[1] == answer


def test_a_dash_reads_standard_input(run, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{TEXT}\n".encode())))
    assert run("-")[1] == run(TEXT)[1]


def test_another_pair_is_only_taken_when_allowed(pair, run, tmp_path):
    policy = _rule(tmp_path / "policy.json", [pair.other, pair.large])
    assert "with another weights" in _refusal(run(TEXT, "--policy", policy))
    code, out, err = run(TEXT, "--policy", policy, "--allow-other-models")
    assert code == 0
    assert out.strip()
    assert err.startswith("warning: ")
    assert err.count("\n") == 3


def _refusal(result) -> str:
    """The one line of a refused run."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return err


BAD = [
    ([""], "empty"),
    ([" \n"], "empty"),
    (["\udcff"], "not UTF-8"),
    ([TEXT, "--method", "magic"], "backoff, speculative, mtad, mmtad, specinfer, large, small"),
    ([TEXT, "--method", "backoff"], "--policy FILE"),
    ([TEXT, "--method", "large", "--policy", "any.json"], "--policy"),
    ([TEXT, "--method", "mtad", "--policy", "any.json"], "--policy"),
    ([TEXT, "--policy", "nowhere/policy.json"], "cannot be read"),
    ([TEXT, "--temperature", "-1"], "temperature"),
    ([TEXT, "--top-k", "0"], "top_k"),
    ([TEXT, "--top-p", "2"], "top_p"),
    ([TEXT, "--min-p", "-0.1"], "min_p"),
    ([TEXT, "--min-p", "nan"], "--min-p must be a finite number, not nan"),
    ([TEXT, "--length", "0"], "--length"),
    ([TEXT, "--beams", "2"], "leave out --beams: speculative has no such setting"),
    ([TEXT, "--method", "mtad", "--beams", "0"], "--beams must be at least 1"),
    ([TEXT, "--method", "mtad", "--tau", "-1"], "--tau must be at least 0"),
    ([TEXT, "--method", "specinfer", "--tau", "0.5"], "specinfer has no such setting; it is one of mtad, mmtad"),
    ([TEXT, "--method", "large", "--length", "2"], "leave out --length"),
    ([TEXT, "--max-new-tokens", "0"], "--max-new-tokens"),
    ([TEXT, "--threads", "0"], "--threads"),
    ([TEXT, "--device", "abacus"], "'abacus'"),
    ([TEXT, "--device", "meta"], "'meta'"),
    ([TEXT, "--temperature", "1e-300"], "temperature must be 0, or at least 1e-06 and finite, not 1e-300"),
    ([TEXT, "--presence-penalty", "1e300"], "presence_penalty must be from -1e+06 to 1e+06"),
    ([TEXT, "--max-new-tokens", "1000000000"], "need 1000000006 positions"),
    ([TEXT, "--dtype", "float99"], "'float99'"),
    ([TEXT, "--large", "/nowhere/model"], "/nowhere/model"),
    ([TEXT, "--small", "nowhere.gguf"], "nowhere.gguf"),
    ([TEXT, "--max-new-tokens", "300"], "need 306 positions"),
    (["w5 " * 300], "need 322 positions"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_refused_in_one_line(run, arguments, message):
    assert message in _refusal(run(*arguments))


def test_bad_files_are_refused_in_one_line(pair, run, tmp_path, monkeypatch):
    (tmp_path / "corrupt.json").write_text('{"schema": 1,')
    assert "not valid JSON" in _refusal(run(TEXT, "--policy", tmp_path / "corrupt.json"))
    assert "different tokenizers" in _refusal(run(TEXT, small=pair.foreign))
    foreign = _rule(tmp_path / "foreign.json", [pair.foreign, pair.large])
    assert "tokenizer" in _refusal(run(TEXT, "--policy", foreign, "--allow-other-models"))
    assert "cannot be loaded" in _refusal(run(TEXT, small=str(tmp_path)))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe")))
    assert "not UTF-8" in _refusal(run("-"))


def test_a_policy_is_refused_before_a_model_is_loaded(run):
    assert "cannot be read" in _refusal(run(TEXT, "--policy", "nowhere.json", small="/nowhere/model"))


def test_ctrl_c_leaves_what_was_written_and_its_statistics(run, monkeypatch):
    whole = run(TEXT, "--method", "large")[1]
    draw, left = Sampling.draw, iter(range(5))

    def interrupted(self, logits, uniform):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return draw(self, logits, uniform)

    monkeypatch.setattr(Sampling, "draw", interrupted)
    code, out, err = run(TEXT, "--method", "large")
    assert code == 130
    assert out.endswith("\n")
    assert whole.startswith(out.removesuffix("\n"))
    assert len(out.split()) == 5
    assert err.startswith("weights: large float32\n5 tokens, ")
    assert err.count("\n") == 2


def test_colours_only_when_wanted(run, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out, err = run(TEXT)[1:]
    assert "\x1b[30;43m" in out
    assert "\x1b[32m" in err
    monkeypatch.setenv("NO_COLOR", "1")
    assert not any("\x1b[3" in text for text in run(TEXT)[1:])


def test_help_teaches_the_options():
    command = [sys.executable, "-m", "decoding", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_COLOR": "1"})
    assert done.returncode == 0
    assert done.stderr == ""
    options = (
        "policy method length beams tau small large allow-other-models raw max-new-tokens temperature top-k top-p min-p"
    )
    for option in f"{options} seed device dtype threads".split():
        assert f"--{option}" in done.stdout
    assert "speculative" in done.stdout


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no\nquestions today') }}", "the chat template refuses it (no questions today); or leave"),
        ("{% for m in %}", "the chat template does not parse (line 1: "),
        ({"rag": "w3", "tools": "w4"}, """choose one with --chat-template-kwargs '{"chat_template": "rag"}'"""),
    ],
    ids=["refuses", "broken", "several"],
)
def test_a_chat_template_that_fails_is_one_sentence(run, tmp_path, template, message):
    large = save(tmp_path, seed=2, template=template, layers=2)
    code, out, err = run(TEXT, large=large)
    assert (code, out) == (2, "")
    assert message in err and err.count("\n") == 1
    assert run("--raw", TEXT, large=large)[0] == 0


def test_the_chat_template_is_chosen_and_told(run, pair, tmp_path):
    told = {"short": TEMPLATE, "long": "{% if deep %}w9{% else %}w8{% endif %} {{ messages[0]['content'] }}"}
    large = save(tmp_path, seed=2, template=told, layers=2)
    for extra, written in (("short", f"w3 {TEXT} w4"), ("long", f"w8 {TEXT}"), ("deep", f"w9 {TEXT}")):
        given = {"chat_template": "long", "deep": True} if extra == "deep" else {"chat_template": extra}
        code, out, _ = run("--chat-template-kwargs", json.dumps(given), "--method", "speculative", TEXT, large=large)
        assert code == 0
        assert out == run("--raw", "--method", "speculative", written, large=large)[1]
    for wrong in ("{", "[1]", '{"tokenize": true}'):
        code, _, err = run("--chat-template-kwargs", wrong, TEXT)
        assert code == 2 and "chat" in err and err.count("\n") == 1
