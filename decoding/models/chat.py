"""Chat templates: messages become the text that a model reads, and whatever a template does wrong is one sentence."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime
from string import ascii_letters
from typing import Any

OWN = (
    *("conversation", "messages", "add_generation_prompt", "continue_final_message", "sanitize_control_tokens"),
    *("tokenize", "tokenizer_kwargs", "padding", "truncation", "max_length"),
    *("return_dict", "return_tensors", "return_assistant_tokens_mask"),
)
"""arguments of apply_chat_template that are ours to give"""
FROZEN_CLOCK = (
    "{%- macro strftime_now(format) -%}{%- set now = namespace(text=format) -%}"
    "{%- for directive, value in frozen_now.items() -%}"
    "{%- set now.text = now.text.replace(directive, value) -%}"
    "{%- endfor -%}{{- now.text -}}{%- endmacro %}\n"
)
"""Comes before a template and hides transformers' own ``strftime_now``, which tells the time of the call. The line
break is eaten as trim_blocks says, so the template itself stays what it was."""


class TemplateError(ValueError):
    """A chat template that cannot be used, or refuses the messages; the message, one sentence, says why."""


def render(tokenizer: Any, messages: list[dict], now: datetime | None = None, extra: dict | None = None) -> str:
    """``messages`` as the tokenizer's chat template writes them, ready for the answer.

    A last message of the assistant is left open, to be continued.
    now: the time that a template with a date prints (default: that of the call).
    extra: further arguments of apply_chat_template, such as ``tools`` or ``enable_thinking``; ``chat_template`` names
        one of several templates.
    Raises TemplateError for everything that the template does not do.
    """
    how = _checked(extra)
    if messages[-1]["role"] == "assistant":
        how |= {"add_generation_prompt": False, "continue_final_message": True}
    else:
        how["add_generation_prompt"] = True
    _refuse_choice(tokenizer, how)
    try:
        if now is not None and "strftime_now" in json.dumps([tokenizer.chat_template, how.get("chat_template")]):
            template = tokenizer.get_chat_template(how.get("chat_template"), how.get("tools"))
            how |= {"chat_template": FROZEN_CLOCK + template, "frozen_now": _directives(now)}
        text = tokenizer.apply_chat_template(messages, tokenize=False, **how)
        text.encode()  # half a surrogate pair has no tokens
        return text
    except Exception as error:  # a template is a program and may raise anything
        raise TemplateError(_fault(error)) from error


def parse_extra(text: str) -> dict[str, Any]:
    """The arguments for a template that ``--chat-template-kwargs`` gives. ValueError for anything but a JSON object."""
    right = """write a JSON object such as '{"enable_thinking": false}'"""
    try:
        extra = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--chat-template-kwargs is not valid JSON; {right}") from error
    if not isinstance(extra, dict):
        raise ValueError(f"--chat-template-kwargs is not a JSON object; {right}")
    return _checked(extra)


def _checked(extra: dict | None) -> dict[str, Any]:
    taken = [name for name in extra or {} if name in OWN]
    if taken:
        raise TemplateError(f"the chat template's argument {taken[0]!r} is not free to set; leave it out")
    return dict(extra or {})


def _refuse_choice(tokenizer: Any, how: dict[str, Any]) -> None:
    """TemplateError where a template must be chosen, or the chosen one is not there."""
    templates = tokenizer.chat_template
    if not isinstance(templates, dict):
        if "{" not in how.get("chat_template", "{"):  # transformers would take the name for the whole template
            raise TemplateError(f"the tokenizer has one chat template, so there is no {how['chat_template']!r}")
        return
    chosen = how.get("chat_template", "tool_use" if how.get("tools") and "tool_use" in templates else "default")
    if chosen not in templates:
        names = sorted(templates)
        raise TemplateError(
            f"the tokenizer has several chat templates ({', '.join(names)}) and none of the name {chosen!r}; choose "
            f"one with --chat-template-kwargs '{json.dumps({'chat_template': names[0]})}'"
        )


def _directives(now: datetime) -> dict[str, str]:
    """The output of strftime for each directive that this machine knows, such as %d and %-d."""
    values = {}
    for directive in (f"%{flag}{letter}" for flag in ("-", "") for letter in ascii_letters):
        with suppress(ValueError):
            values[directive] = now.strftime(directive)
    return values | {"%%": "%"}


def _fault(error: Exception) -> str:
    said = " ".join(str(error).split())[:300]
    line = getattr(error, "lineno", None)  # of jinja2.TemplateSyntaxError, which is not imported for this alone
    if line is not None:
        return f"the chat template does not parse (line {line}: {said}); mend it, or use a tokenizer without one"
    return f"the chat template refuses it ({said or type(error).__name__})"
