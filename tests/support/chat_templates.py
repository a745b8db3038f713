"""Chat templates like those of published models, and a tokenizer whose tokens show what they wrote."""

from tiny_models import characters

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
