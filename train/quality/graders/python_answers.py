"""Grader that runs the program in an answer on the tests that come with its prompt.

After HumanEval (Chen et al. 2021), whose tests are a function, and MBPP (Austin et al. 2021), whose are asserts.
"""

import ast
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from train.quality.graders.fences import blocks
from train.quality.graders.python_checks import (
    Check,
    Comparison,
    asserts,
    examples,
    independent,
    literal,
    only_asserts,
    outside,
    redefined,
)
from train.quality.sandbox.sandbox import Limits, check_walls, run

CODE = re.compile(r"^(?:(?:from|import|def|class|async def)\b|@)", re.MULTILINE)
CHECK = re.compile(r"^def check\(", re.MULTILINE)
"""HumanEval's tests"""
MOST_LINES = 400
"""of an answer that are parsed as code"""


@dataclass(frozen=True)
class Stub:
    """A function that a prompt begins, the code ``before`` it (imports, helpers), and the ``source`` of both."""

    before: str
    source: str
    name: str
    docstring: str


def passes_tests(
    prompt: str,
    reference: str | None,
    text: str,
    limits: Limits = Limits(),
    tests: str | None = None,
    entry_point: str | None = None,
) -> float | None:
    """1.0 when the first program in ``text`` passes all tests of the prompt, else 0.0; None without tests.

    ``tests`` are asserts, or a function check(candidate) that is called with the answer's ``entry_point``. Without
    them, the tests are the doctest examples of the function that the prompt begins, else the ``assert`` lines of the
    prompt, else those of the reference; the model sees those, so a pass is weaker evidence than with hidden tests.
    """
    stub = find_stub(prompt)
    if tests is None:
        checks = examples(stub.docstring) if stub else []
        checks = checks or asserts(prompt) or asserts(reference or "")
        runs = any(not hasattr(check, "want") or check.want or check.error for check in checks)
    else:
        checks = only_asserts(tests)
        runs = is_python(tests) and (CHECK.search(tests) is None or (entry_point or "").isidentifier())
    if not runs:
        return None
    check_walls()
    program = next((p for p in programs(stub, text) if entry_point is None or entry_point in _functions(p)), None)
    if program is None:
        return 0.0
    if checks:
        return float(passes(program, checks, limits))
    return float(passes_whole(program, tests, entry_point, limits))


def passes_whole(program: str, tests: str, entry_point: str | None, limits: Limits) -> bool:
    """Run the program and then ``tests`` beside it: here, unlike in ``passes``, its code could see the right values."""
    call = [] if CHECK.search(tests) is None else [f"check({entry_point})"]
    replies = run(program, [tests, *call], [entry_point] if entry_point else (), limits)
    return replies is not None and not any("raised" in reply for reply in replies)


def passes(program: str, checks: list[Check], limits: Limits) -> bool:
    """Run the program once and compare the result of each test.

    What an assert compares with, if it is known without the program, is evaluated in another process: a program that
    takes over its own process would have the same value reported for both sides.
    """
    answered = redefined(checks)
    known = without_answer([check for check in checks if isinstance(check, Comparison)], answered, limits)
    replies = run(program, [source for check in checks for source in check.expressions], answered, limits)
    if replies is None:
        return False
    left = iter(replies)
    return all(check.passes(*(known.get(source, next(left)) for source in check.expressions)) for check in checks)


def without_answer(checks: list[Comparison], answered: list[str], limits: Limits) -> dict[str, dict[str, str]]:
    """Expressions of ``checks`` that need no answer, and the reply to each."""
    sources = [source for check in checks for source in check.expressions if independent(source, answered)]
    known = {source: {"printed": "", "value": source} for source in sources if literal(source)}
    others = [source for source in dict.fromkeys(sources) if source not in known]
    modules = sorted({name for source in others for name in outside(source)} & sys.stdlib_module_names)
    replies = run("".join(f"import {name}\n" for name in modules), others, (), limits) if others else []
    return known | dict(zip(others, replies or [], strict=False))


def find_stub(prompt: str) -> Stub | None:
    """The last function of the prompt's code if its body is only a docstring, else None."""
    for source in (source for code in [*blocks(prompt), prompt] for source in snippets(code)):
        last = next(reversed(ast.parse(source).body), None)
        if isinstance(last, ast.FunctionDef) and len(last.body) == 1 and ast.get_docstring(last) is not None:
            before = "".join(source.splitlines(keepends=True)[: last.lineno - 1])
            return Stub(before, source.rstrip() + "\n", last.name, ast.get_docstring(last))
    return None


def programs(stub: Stub | None, text: str) -> Iterator[str]:
    """Programs in ``text``, likeliest first.

    These are fenced blocks, code in prose, and bodies that continue the prompt's function.
    """
    fenced = blocks(text)
    for code in chain(joined(fenced), snippets(text)):
        if stub and stub.name in _functions(code):
            yield stub.before + "\n" + code
        elif stub is None and _functions(code):
            yield code
    for code in [*fenced, text] if stub else ():
        for body in (code, textwrap.indent(textwrap.dedent(code), "    ")):
            program = python_prefix(stub.source + body, len(stub.source.splitlines()))
            if _functions(program).get(stub.name, 0) > 1:  # more than the docstring
                yield program


def joined(fenced: list[str]) -> Iterator[str]:
    """Each block after all earlier ones, which it may need, and then alone."""
    for i, block in enumerate(fenced):
        yield python_prefix(textwrap.dedent("\n".join(fenced[: i + 1])))
        yield python_prefix(textwrap.dedent(block))


def snippets(text: str) -> Iterator[str]:
    """Pieces of code that begin on a line of their own, each up to the last line that is Python."""
    end = 0
    for start in CODE.finditer(text):
        if start.start() >= end:
            code = python_prefix(text[start.start() :])
            end = start.start() + len(code)
            yield code


def python_prefix(code: str, least: int = 0) -> str:
    """The first lines of ``code`` that are Python, more than ``least``; "" if there are none. Prose may follow."""
    lines = code.split("\n", least + MOST_LINES)[: least + MOST_LINES]
    end = len(lines)
    while end > least:
        text = "\n".join(lines[:end]) + "\n"
        try:
            ast.parse(text)
            return text
        except SyntaxError as error:
            end = min(end, error.lineno or end) - 1  # longer prefixes hold the same error
        except (ValueError, MemoryError, RecursionError):
            end -= 1
    return ""


def is_python(code: str) -> bool:
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True


def _functions(code: str) -> dict[str, int]:
    """Functions at the top level of ``code``: name -> statements in its body."""
    return {node.name: len(node.body) for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)}
