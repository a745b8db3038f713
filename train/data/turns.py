"""Conversations in forms that more chat templates take: without system messages, with turns of one side joined.

Templates such as Gemma's and Mistral's want user and assistant to alternate; Gemma's knows no tools, Llama 3.1's takes
one call a turn, Mistral's only ids of 9 characters.
"""

import json
from collections.abc import Iterator
from typing import Any

from train.data.errors import PromptError
from train.data.messages import THOUGHTS

SYSTEM = ("system", "developer")
Messages = list[dict[str, Any]]


def with_system(messages: Messages, how: str) -> Messages:
    """``messages`` with their system messages kept, merged into the first of the user, or dropped.

    PromptError when there is no message to merge them into.
    """
    system = [message["content"] for message in messages if message["role"] in SYSTEM]
    if how == "keep" or not system:
        return messages
    rest = [message for message in messages if message["role"] not in SYSTEM]
    if how == "drop":
        return rest
    first = next((i for i, message in enumerate(rest) if message["role"] == "user"), None)
    if first is None:
        raise PromptError("no message of the user to merge the system message into; say --system drop")
    merged = rest[first] | {"content": "\n\n".join([*system, rest[first]["content"]])}
    return [*rest[:first], merged, *rest[first + 1 :]]


def forms(messages: Messages, how: str) -> Iterator[Messages]:
    """``messages`` as they are; to "merge" also with turns of one side joined, then with tool turns as text as well."""
    yield messages
    if how == "merge":
        yield _joined(messages)
        yield _joined([_as_text(message) for message in messages])


def tool_texts(messages: Messages) -> Iterator[str]:
    """Texts that a prompt with these tool turns holds: the names that are called, what is said to it, the results."""
    for message in messages:
        yield from (call["name"] for call in _calls(message))
        if message["role"] == "tool" or message.get("tool_calls"):
            yield message["content"]


def _calls(message: dict[str, Any]) -> list[dict[str, Any]]:
    return [call.get("function", call) for call in message.get("tool_calls", ())]


def _joined(messages: Messages) -> Messages:
    found: Messages = []
    for message in messages:
        if found and found[-1]["role"] == message["role"] in ("user", "assistant"):
            message = _both(found.pop(), message)
        found.append(message)
    return found


def _both(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    both = one | other
    both |= {
        key: "\n\n".join(filter(None, (one.get(key), other.get(key)))) for key in ("content", *THOUGHTS) if key in both
    }
    calls = [*one.get("tool_calls", ()), *other.get("tool_calls", ())]
    return both | ({"tool_calls": calls} if calls else {})


def _as_text(message: dict[str, Any]) -> dict[str, Any]:
    """A result becomes a message of the user, calls become lines of JSON in the message of the assistant."""
    if message["role"] == "tool":
        return {"role": "user", "content": message["content"]}
    calls = [{key: call[key] for key in ("name", "arguments") if key in call} for call in _calls(message)]
    lines = (json.dumps(call, ensure_ascii=False) for call in calls)
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    return rest | {"content": "\n".join(filter(None, (message["content"], *lines)))}
