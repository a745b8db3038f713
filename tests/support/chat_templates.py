"""Chat templates like those of published models, and what prompts read as with them."""

import json

import pytest
from tiny_models import characters

from train.data.prompts import PromptError, PromptOptions, load_prompts

CHATML = (
    "{%- if tools %}<tools>{{ tools | tojson }}</tools>{% endif -%}"
    "{%- for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{%- for call in m.tool_calls or [] %}<call>{{ (call.function or call).name }} "
    "{{ (call.function or call).arguments | tojson }}</call>{% endfor -%}"
    "<end>{% endfor -%}"
    "{%- if add_generation_prompt %}<assistant>{% if enable_thinking is false %}<think></think>{% endif %}{% endif -%}"
)
GEMMA = (
    "{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif -%}"
    "{%- for m in messages %}"
    "{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif -%}"
    "<{{ m['role'] }}>{{ m['content'] | trim }}<end>{% endfor -%}"
    "{%- if add_generation_prompt %}<model>{% endif -%}"
)
DATED = (
    "{%- if not date_string is defined %}"
    "{%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}"
    "{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}\n"
    "Today Date: {{ date_string }}\n"
    "{%- for m in messages %}\n<{{ m.role }}>{{ m.content }}{% endfor %}"
)


def chat_tokenizer(template=CHATML):
    """One token a byte, so that decoding the tokens of a prompt gives what the template wrote."""
    tokenizer = characters()
    tokenizer.chat_template = template
    return tokenizer


CHAT = chat_tokenizer()


def written(tmp_path, line, tokenizer=CHAT, **how):
    """What the only prompt of a file with this ``line`` reads as, and the notes."""
    path, notes = tmp_path / "prompts.jsonl", []
    path.write_text(json.dumps(line), encoding="utf-8")
    (prompt,) = load_prompts(path, tokenizer, options=PromptOptions(**how), note=notes.append)
    return tokenizer.decode(prompt.ids), notes


def refused(tmp_path, line, tokenizer=CHAT, **how):
    with pytest.raises(PromptError) as error:
        written(tmp_path, line, tokenizer, **how)
    assert "prompts.jsonl, line 1: " in str(error.value) and len(str(error.value).splitlines()) == 1
    return str(error.value).split("line 1: ", 1)[1]
