"""What a generation_config says is done, refused before any work, or part of what the model is."""

import json

import pytest
import torch
from processed_logits import generates
from saved_models import word_tokenizer
from tiny_models import greedy, tiny, words
from tiny_runs import save_model

from decoding import LM, Autoregressive, Speculative, generate, measure_cost
from decoding.__main__ import main as decode
from decoding.cost.costs import ModelCosts
from decoding.models.defaults import load_model
from decoding.models.settings import ignore_settings
from policies import Rule, load
from policies.storage.files import PolicyError
from train.common.cli import attempt

IDS = torch.tensor([[3, 4, 5]])


def test_stop_strings_of_a_generation_config_end_a_text():
    """As with transformers, which applies them; another list or none replaces them."""
    large = LM(tiny(layers=2, seed=1).model, words())
    own = greedy(large, IDS, torch.ones_like(IDS), 12)[0, 3:].tolist()
    stop = next(i for i in range(3, 12) if own[i] not in own[:i])
    large.model.generation_config.stop_strings = [f"w{own[stop]}"]
    for decoder in (Autoregressive(large), Speculative([large, large])):
        assert generate(decoder, IDS, max_new_tokens=12, eos_token_id=()).lengths.tolist() == [stop + 1]
        for others in ((), ["w77"]):
            result = generate(decoder, IDS, max_new_tokens=12, eos_token_id=(), stop_strings=others)
            assert result.sequences[0, 3:].tolist() == own
    large.model.generation_config.stop_strings = f"w{own[stop]}"
    assert generate(Autoregressive(large), IDS, max_new_tokens=12, eos_token_id=()).lengths.tolist() == [stop + 1]
    with pytest.raises(ValueError, match="stop_strings need a tokenizer"):
        generate(Autoregressive(LM(large.model)), IDS, eos_token_id=())


@pytest.fixture
def pair(tmp_path):
    return save_model(tmp_path / "small", seed=1, layers=1), save_model(tmp_path / "large", seed=2, layers=2)


def setting(folder, **changes):
    path = f"{folder}/generation_config.json"
    with open(path) as file:
        known = json.load(file)
    with open(path, "w") as file:
        json.dump(known | changes, file)


def test_the_command_line_stops_there_too(pair, capsys):
    asked = ["--small", pair[0], "--large", pair[1], "--max-new-tokens", "12", "--raw", "w5 w6"]
    assert decode(asked) == 0
    answer = capsys.readouterr().out.split()
    stop = next(i for i in range(2, 12) if answer[i] not in answer[:i])
    setting(pair[1], stop_strings=[answer[stop]])
    assert decode(asked) == 0
    assert capsys.readouterr().out.split() == answer[: stop + 1]


def test_the_command_line_applies_settings_or_goes_on_without_them(pair, capsys):
    asked = ["--small", pair[0], "--large", pair[1], "--max-new-tokens", "16", "--raw", "w5 w6"]

    def answer(*more):
        assert decode([*asked, *more]) == 0
        return capsys.readouterr().out

    plain = answer()
    setting(pair[1], repetition_penalty=1.8, no_repeat_ngram_size=2)
    changed, without = answer(), ("--ignore-generation-config", "repetition_penalty, no_repeat_ngram_size")
    assert changed != plain == answer(*without)
    lm = LM.load(pair[1])
    ids = lm.tokenizer("w5 w6", return_tensors="pt")["input_ids"][0].tolist()
    assert [f"w{token}" for token in generates(lm, ids, 16) if token != 2] == changed.split()
    assert answer("--frequency-penalty", "5", *without) != plain != answer("--presence-penalty", "5", *without)
    setting(pair[1], guidance_scale=1.5)
    assert decode(asked) == 2
    assert "add --ignore-generation-config guidance_scale" in capsys.readouterr().err
    answer("--ignore-generation-config", "guidance_scale")
    assert decode([*asked, "--ignore-generation-config", "eos_token_id"]) == 2
    assert "no setting 'eos_token_id' that can be left out" in capsys.readouterr().err


def test_the_models_own_sampling_is_shown_and_taken(pair, capsys):
    asked = ["--small", pair[0], "--large", pair[1], "--max-new-tokens", "16", "--raw", "w5 w6"]
    assert decode([*asked, "--temperature", "model"]) == 0
    greedy_text = capsys.readouterr().out
    setting(pair[1], do_sample=True, temperature=1.3, top_p=0.9)
    assert decode(asked) == 0
    said = capsys.readouterr()
    assert said.out == greedy_text
    assert "large is made to draw with temperature 1.3, top_k 50, top_p 0.9; --temperature model" in said.err
    assert decode([*asked, "--temperature", "model", "--top-k", "9"]) == 0
    own = capsys.readouterr()
    assert decode([*asked, "--temperature", "1.3", "--top-k", "9", "--top-p", "0.9"]) == 0
    assert own.out == capsys.readouterr().out != greedy_text
    assert "is made to draw" not in own.err


def test_ignored_settings_are_none_of_a_model(pair):
    before = LM.load(pair[1]).identity()
    setting(pair[1], repetition_penalty=1.8)
    lm = LM.load(pair[1])
    assert lm.identity() != before
    ignore_settings(lm, ("repetition_penalty",))
    assert lm.identity() == before


@pytest.mark.parametrize(
    "changes",
    [{"eos_token_id": [2, 5, 7]}, {"repetition_penalty": 1.1}, {"stop_strings": ["w7"]}, {"min_p": 0.1}],
    ids=str,
)
def test_what_ends_or_changes_a_text_is_part_of_a_model(changes, pair, tmp_path):
    before = LM.load(pair[1]).identity()
    Rule("entropy", 2.0).save(tmp_path / "policy.json", [before, before])
    assert LM.load(pair[1]).identity() == before
    setting(pair[1], **changes)
    after = LM.load(pair[1]).identity()
    assert {key for key in before if before[key] != after[key]} == {"generation_config"}
    with pytest.raises(PolicyError, match="model 1 was .* with another generation_config; fit it again"):
        load(tmp_path / "policy.json", [before, after])


@pytest.mark.parametrize("eos", ["2", [2, "5"], 2.5, -1, 10**30, True, [None]], ids=str)
def test_ends_that_are_no_ids(eos):
    large = tiny()
    large.model.generation_config.eos_token_id = eos
    with pytest.raises(ValueError, match="llama sets eos_token_id=.*; it must be ids of tokens"):
        generate(Autoregressive(large), IDS)


@pytest.mark.parametrize("strings", [5, [""], ["a", None], {"a": 1}], ids=str)
def test_stop_strings_that_are_none(strings):
    large = LM(tiny().model, words())
    large.model.generation_config.stop_strings = strings
    for work in (lambda: generate(Autoregressive(large), IDS), large.identity):
        with pytest.raises(ValueError, match="llama sets stop_strings=.*; it must be texts"):
            work()


@pytest.mark.parametrize("drawing", [{"temperature": "hot"}, {"top_p": "0.9"}, {"top_k": 2.5}, {"min_p": [1]}], ids=str)
def test_a_way_of_drawing_that_means_nothing(drawing, pair, capsys):
    """Greedy texts too: the command says how the model would draw."""
    setting(pair[1], do_sample=True, **drawing)
    assert decode(["--small", pair[0], "--large", pair[1], "--max-new-tokens", "4", "w5"]) == 2
    error = capsys.readouterr().err
    assert "large draws with temperature=" in error and "means nothing" in error and error.count("\n") == 1


def test_the_order_of_several_ends_is_none_of_it(pair):
    setting(pair[1], eos_token_id=[7, 2])
    before = LM.load(pair[1]).identity()
    setting(pair[1], eos_token_id=[2, 7])
    assert LM.load(pair[1]).identity() == before


def test_a_setting_is_refused_before_models_are_timed(pair, tmp_path, monkeypatch, capsys):
    from train.fit_policy import main as fit

    for place in ("train.common.preparation.timing_table", "decoding.cost.overhead.measure_costs"):
        monkeypatch.setattr(place, lambda *_: pytest.fail("it timed the models"))
    setting(pair[1], guidance_scale=1.5)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"w{i} w5"}) + "\n" for i in range(6, 36)))
    models = ["--small", pair[0], "--large", pair[1]]
    assert fit([*models, "--prompts", str(prompts), "--output", str(tmp_path / "runs"), "--quality-budget", "0.1"]) == 2
    assert "large sets guidance_scale=1.5" in capsys.readouterr().err
    assert measure_cost.main(models) == 2
    assert "to go on without it, add --ignore-generation-config guidance_scale" in capsys.readouterr().err


def test_a_model_that_returns_nan_is_one_sentence(pair, capsys, monkeypatch):
    """Its weights look right: float16 overflows in a forward."""
    lm = load_model("large", pair[1])
    with torch.no_grad():
        lm.model.model.layers[0].mlp.down_proj.weight.mul_(1e38)
    lm.model.save_pretrained(pair[1])
    word_tokenizer().save_pretrained(pair[1])
    models = ["--small", pair[0], "--large", pair[1]]
    assert decode([*models, "--max-new-tokens", "20", "w5 w6"]) == 2
    said = capsys.readouterr().err
    assert "error: the model large returned NaN logits" in said and "Traceback" not in said
    costs = ModelCosts(({1: 0.1, 2: 0.1},) * 2)
    monkeypatch.setattr("decoding.cost.overhead.measure", lambda *_, **__: costs)
    assert measure_cost.main(models) == 2
    assert "returned NaN logits" in capsys.readouterr().err
    assert attempt("fit_policy", lambda: generate(Autoregressive(LM.load(pair[1])), IDS)) == 2
    assert "fit_policy: the model large returned NaN logits; check its weights or use" in capsys.readouterr().err
