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
MISTRAL = (
    "{%- set turns = messages[1:] if messages[0].role == 'system' else messages -%}"
    "{%- set ns = namespace(index=0) -%}"
    "{%- for m in turns | rejectattr('role', 'equalto', 'tool') | selectattr('tool_calls', 'undefined') %}"
    "{%- if (m.role == 'user') != (ns.index % 2 == 0) %}"
    "{{- raise_exception('conversation roles must alternate user/assistant/user/assistant/...') }}{% endif -%}"
    "{%- set ns.index = ns.index + 1 %}{% endfor -%}"
    "{%- for m in turns %}{% if m.role == 'user' %}"
    "{%- if loop.first and tools %}[TOOLS]{{ tools | tojson }}[/TOOLS]{% endif %}[INST] {{ m.content }}[/INST]"
    "{%- elif m.tool_calls is defined %}[CALLS]{% for call in m.tool_calls %}"
    "{%- if call.id is not defined or call.id | length != 9 %}"
    "{{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif -%}"
    "{{ call.function | tojson }}{% endfor %}</s>"
    "{%- elif m.role == 'assistant' %} {{ m.content }}</s>"
    "{%- elif m.role == 'tool' %}[RESULTS]{{ m.content | string }}[/RESULTS]{% endif %}{% endfor -%}"
)
LLAMA = (
    "{%- for m in messages %}{% if not (m.role == 'tool' or 'tool_calls' in m) %}"
    "<{{ m.role }}>{{ m.content | trim }}<end>"
    "{%- elif 'tool_calls' in m %}{% if m.tool_calls | length != 1 %}"
    "{{- raise_exception('This model only supports single tool-calls at once!') }}{% endif -%}"
    '<assistant>{"name": "{{ m.tool_calls[0].function.name }}", "parameters": '
    "{{ m.tool_calls[0].function.arguments | tojson }}}<end>"
    "{%- else %}<ipython>{{ m.content | tojson }}<end>{% endif %}{% endfor -%}"
    "{%- if add_generation_prompt %}<assistant>{% endif -%}"
)
QWEN = (
    "{%- for m in messages %}{% if m.role == 'tool' %}"
    "{%- if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}<user>{% endif -%}"
    "<response>{{ m.content }}</response>"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}<end>{% endif -%}"
    "{%- else %}<{{ m.role }}>{{ m.content }}"
    "{%- for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}<end>"
    "{%- endif %}{% endfor -%}"
    "{%- if add_generation_prompt %}<assistant>{% endif -%}"
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
