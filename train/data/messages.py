"""Messages as people store them (OpenAI, ShareGPT, parts of content) become the messages that chat templates read."""

from __future__ import annotations

import json
import reprlib
from typing import Any

from train.data.errors import PromptError

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
    "system": "system",
}
"""what the ``from`` of a turn in ShareGPT's format means"""
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
TEXT_PARTS = ("text", "input_text", "output_text")


def read_messages(value: Any, key: str = "messages") -> list[dict[str, Any]]:
    """The messages in a line's ``value``: ``role``, ``content`` (a string), and whatever else a template may read.

    Lists of text parts are joined, the arguments of tool calls become objects, keys with null are left out.
    Raises PromptError for messages that no template could read.
    """
    if not isinstance(value, list) or not value:
        raise PromptError(f"{key!r} is {reprlib.repr(value)}; it must be a list of {{role, content}}")
    messages = [_message(number, message) for number, message in enumerate(value, start=1)]
    last = messages[-1]
    if last["role"] not in ("user", "tool", "assistant"):
        raise PromptError(f"the last message is from '{last['role']}'; it must be from the user")
    if last["role"] == "assistant" and (last.get("tool_calls") or not last["content"].strip()):
        raise PromptError("the last message is from 'assistant' and has no text to continue; it must be from the user")
    return messages


def without_answer(messages: Any) -> Any:
    """``messages`` of a data set without the assistant's closing turns: these are the answer."""
    turns = list(messages) if isinstance(messages, list) else messages
    while turns and isinstance(turns[-1], dict) and _role(turns[-1]) == "assistant":
        turns.pop()
    return turns


def _role(message: dict[str, Any]) -> Any:
    said = message.get("role")
    if said is None:
        said = message.get("from")
        return SHAREGPT.get(said) if isinstance(said, str) else None
    return "tool" if said == "function" else said


def _message(number: int, message: Any) -> dict[str, Any]:
    right = f"it must hold a 'role' ({', '.join(ROLES)}) and a non-empty string 'content'"
    wrong = PromptError(f"message {number} is {reprlib.repr(message)}; {right}")
    if not isinstance(message, dict) or (role := _role(message)) not in ROLES:
        raise wrong
    content = _content(number, message.get("content", message.get("value")))
    found = {key: value for key, value in message.items() if value is not None and key not in ("from", "value")}
    if found.pop("function_call", None) is not None and "tool_calls" not in found:
        found["tool_calls"] = [{"type": "function", "function": message["function_call"]}]
    if found.get("tool_calls"):
        found["tool_calls"] = _calls(number, found["tool_calls"])
    elif "tool_calls" in found:  # templates look for the key alone
        del found["tool_calls"]
    empty = role == "tool" or (role == "assistant" and any(found.get(key) for key in ("tool_calls", *THOUGHTS)))
    if content is None and empty:
        content = ""
    if not isinstance(content, str) or not (empty or content.strip()):
        raise wrong
    return found | {"role": role, "content": content}


def _content(number: int, content: Any) -> Any:
    """Text parts as one string, a line each; anything else as it is."""
    if not isinstance(content, list):
        return content
    texts = [part if isinstance(part, str) else _part(number, part) for part in content]
    return "\n".join(texts)


def _part(number: int, part: Any) -> str:
    kind = part.get("type", "text") if isinstance(part, dict) else None
    text = part.get("text") if isinstance(part, dict) else None
    if kind not in TEXT_PARTS or not isinstance(text, str):
        raise PromptError(f"message {number} has the part {reprlib.repr(part)}; only parts of text can be read")
    return text


def _calls(number: int, calls: Any) -> list[dict[str, Any]]:
    """Tool calls with arguments as objects: APIs give them as JSON, and templates would write that as a string."""
    right = "it must be a list of {function: {name, arguments}}"
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise PromptError(f"message {number} has 'tool_calls' {reprlib.repr(calls)}; {right}")
    return [_call(number, call) for call in calls]


def _call(number: int, call: dict[str, Any]) -> dict[str, Any]:
    inner = call.get("function", call)
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise PromptError(f"message {number} calls {reprlib.repr(call)}; a call holds {{name, arguments}}")
    arguments = inner.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            raise PromptError(
                f"message {number} calls {inner['name']} with {reprlib.repr(arguments)}; arguments must be valid JSON"
            ) from None
    inner = inner | ({} if arguments is None else {"arguments": arguments})
    return call | {"function": inner} if "function" in call else inner
