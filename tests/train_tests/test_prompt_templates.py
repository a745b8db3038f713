"""Chat templates that refuse, fail or print the date, and prompts that are too long for them."""

import datetime as dates
import json
from dataclasses import replace

import pytest
import transformers.utils.chat_template_utils as chat_template_utils
from chat_templates import CHAT, CHATML, DATED, GEMMA, chat_tokenizer, refused, written

import train.data.options
from train.data.prompts import PromptError, PromptOptions, load_prompts

TEXT = {"role": "user", "content": "hi"}
RESULT = {"role": "tool", "content": "2"}


def test_a_system_message_is_merged_or_dropped_where_the_template_refuses_it(tmp_path):
    gemma, line = chat_tokenizer(GEMMA), {"messages": [{"role": "system", "content": "be short"}, TEXT]}
    fault = refused(tmp_path, line, gemma)
    assert "System role not supported" in fault and "--system merge" in fault and "--system drop" in fault
    assert written(tmp_path, line, gemma, system="merge")[0] == "<user>be short\n\nhi<end><model>"
    assert written(tmp_path, line, gemma, system="drop")[0] == "<user>hi<end><model>"


def test_templates_that_fail_are_one_sentence(tmp_path):
    assert "does not parse (line 1" in refused(tmp_path, {"prompt": "a"}, chat_tokenizer("{% if %}"))
    assert "refuses it ('nothing' is undefined)" in refused(
        tmp_path, {"prompt": "a"}, chat_tokenizer("{{ nothing.x }}")
    )
    several = chat_tokenizer({"b": CHATML, "a": GEMMA})
    assert 'choose one with --chat-template-kwargs \'{"chat_template": "a"}\'' in refused(
        tmp_path, {"prompt": "a"}, several
    )
    chosen = written(tmp_path, {"prompt": "hi"}, several, chat_template_kwargs='{"chat_template": "a"}')
    assert chosen == ("<user>hi<end><model>", [])
    assert "no 'rag'" in refused(tmp_path, {"prompt": "a"}, CHAT, chat_template_kwargs='{"chat_template": "rag"}')


LENGTHS = ["a b", "c " * 30, "d", "e " * 90]


@pytest.fixture
def some_too_long(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text, "id": str(i)}) + "\n" for i, text in enumerate(LENGTHS)))
    return path


def test_prompts_that_are_too_long_are_skipped_and_counted(some_too_long):
    notes = []
    prompts = load_prompts(some_too_long, CHAT, max_tokens=40, note=notes.append)
    assert [p.id for p in prompts] == ["0", "2"]
    assert notes == [f"{some_too_long}: 2 of 4 prompts: more than 40 tokens, skipped (the longest, 3, has 202)"]
    assert [p.id for p in load_prompts(some_too_long, CHAT, 2, 40, note=str)] == [
        "0",
        "2",
    ]  # a limit is met all the same
    with pytest.raises(PromptError, match="line 3: prompt 2, the shortest, has 23 tokens and the limit is 20"):
        load_prompts(some_too_long, CHAT, max_tokens=20, note=str)
    with pytest.raises(PromptError, match="line 2: prompt 1 has 82 tokens and the limit is 40"):
        load_prompts(some_too_long, CHAT, max_tokens=40, options=PromptOptions(too_long="error"))


def test_long_prompts_lose_the_middle_of_their_longest_message(tmp_path):
    path, notes = tmp_path / "prompts.jsonl", []
    path.write_text(json.dumps({"system": "be short", "prompt": "Read: " + "la " * 6000 + "What was it?"}))
    (prompt,) = load_prompts(path, CHAT, None, 300, PromptOptions(too_long="truncate"), notes.append)
    text = CHAT.decode(prompt.ids)
    assert 280 < len(prompt.ids) <= 300 and "1 of 1 prompts: more than 300 tokens: the middle is cut out" in notes[0]
    assert text.startswith("<system>be short<end><user>Read: la la") and text.endswith("What was it?<end><assistant>")
    with pytest.raises(PromptError, match="cannot be shortened to 20 tokens"):
        load_prompts(path, CHAT, None, 20, PromptOptions(too_long="truncate"), str)


class Clock(dates.datetime):
    """Stands for datetime on another day."""

    @classmethod
    def now(cls, tz=None):
        return cls.today_


@pytest.fixture
def day(monkeypatch):
    def set_day(number):
        Clock.today_ = dates.datetime(2026, 1, number, 9, 30)
        monkeypatch.setattr(chat_template_utils, "datetime", Clock)
        monkeypatch.setattr(train.data.options, "datetime", Clock)

    return set_day


@pytest.mark.parametrize("template", [DATED, {"default": "\n " + DATED}], ids=["one", "named"])
def test_the_date_is_that_of_the_options_and_else_what_the_template_writes(tmp_path, day, template):
    tokenizer, line = chat_tokenizer(template), {"prompt": "hi"}
    day(5)
    today = written(tmp_path, line, tokenizer)[0]
    assert "Today Date: 05 Jan 2026" in today
    assert written(tmp_path, line, tokenizer, date="2026-01-05")[0] == today
    day(6)
    assert written(tmp_path, line, tokenizer, date="2026-01-05")[0] == today
    with pytest.raises(ValueError, match="--date is 'monday'; write it as 2026-01-31"):
        written(tmp_path, line, tokenizer, date="monday")


@pytest.mark.parametrize("directive", ["%d", "%-d", "%B %e %Y", "%A, %H:%M", "%Y-%m-%dT%X", "%j%%", "%y%p%I", "%F"])
def test_a_frozen_clock_says_what_the_real_one_says(tmp_path, day, directive):
    tokenizer = chat_tokenizer("{{ strftime_now('" + directive + "') }}|{{ messages[0].content }}")
    day(9)
    assert written(tmp_path, {"prompt": "hi"}, tokenizer, date=Clock.today_.isoformat()) == written(
        tmp_path, {"prompt": "hi"}, tokenizer
    )


def test_a_run_goes_on_the_next_day(tmp_path, day):
    from saved_models import word_tokenizer
    from tiny_runs import FAST, save_model, write_prompts

    from train.common.preparation import prepare
    from train.common.run_folder import read_settings
    from train.common.settings import FitPolicy

    tokenizer = word_tokenizer()
    tokenizer.chat_template = "w{{ strftime_now('%d') | int }} {{ messages[0].content }}"
    for name, layers in (("s", 1), ("l", 2)):
        save_model(tmp_path / name, layers, layers)
        tokenizer.save_pretrained(tmp_path / name)
    prompts = write_prompts(tmp_path / "prompts.jsonl", 12)
    own = FitPolicy(small=str(tmp_path / "s"), large=str(tmp_path / "l"), prompts=prompts, output=tmp_path, **FAST)
    day(5)
    before = prepare(own)
    day(6)
    assert prepare(own).splits == before.splits
    assert {p.ids[0] for p in before.splits["fit"]} == {5}
    assert read_settings(tmp_path / "default").reading.date == "2026-01-05T09:30"
    for wrong in ({"chat_template_kwargs": "{"}, {"date": "monday"}):  # before the models are loaded
        with pytest.raises(ValueError, match="; write"):
            prepare(replace(own, small="nowhere", reading=PromptOptions(**wrong)))
    for change, name in (({"date": "2026-01-06"}, "--date"), ({"system": "drop"}, "--system")):
        with pytest.raises(ValueError, match=f"holds a run with another {name}"):
            prepare(replace(own, reading=PromptOptions(**change)))


def test_a_distillation_goes_on_the_next_day(tmp_path, day):
    from train.distill import Distill
    from train.distillation.settings import check_run, remember_run, resolve

    own = Distill(prompts=["prompts.jsonl"], target="target", output=tmp_path)
    day(5)
    remember_run(before := resolve(own))
    day(6)
    check_run(now := resolve(own))
    assert now.reading == before.reading == PromptOptions(date="2026-01-05T09:30")
    with pytest.raises(ValueError, match="holds a run with another --too-long"):
        check_run(resolve(replace(own, reading=PromptOptions(too_long="truncate"))))
