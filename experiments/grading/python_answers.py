"""Code execution: does the program in an answer pass the tests that its prompt holds? (HumanEval, Chen et al. 2021;
MBPP, Austin et al. 2021, whose prompts end in the asserts.)"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from experiments.grading.fences import blocks
from experiments.grading.python_checks import Check, asserts, examples, redefined
from experiments.grading.sandbox import Limits, run

CODE = re.compile(r"^(?:(?:from|import|def|class|async def)\b|@)", re.MULTILINE)
MOST_LINES = 400
"""of an answer that are read as code"""


@dataclass(frozen=True)
class Stub:
    """A function that a prompt begins: what is ``before`` it (imports, helpers), and the ``source`` of all."""

    before: str
    source: str
    name: str
    docstring: str


def passes_tests(prompt: str, reference: str | None, text: str, limits: Limits = Limits()) -> float | None:
    """1.0 when some program in ``text`` passes all tests of the prompt, else 0.0; None when the prompt has no tests.

    Tests are the doctest examples of the function the prompt begins, else the lines with ``assert`` in the prompt,
    else those in the reference. They show the model what is asked: a pass is weaker than with hidden tests.
    """
    stub = find_stub(prompt)
    checks = examples(stub.docstring) if stub else []
    checks = checks or asserts(prompt) or asserts(reference or "")
    if not any(not hasattr(check, "want") or check.want or check.error for check in checks):
        return None
    program = next(programs(stub, text), None)
    return 0.0 if program is None else float(passes(program, checks, limits))


def passes(program: str, checks: list[Check], limits: Limits) -> bool:
    """Run the program once and judge each test."""
    expressions = [source for check in checks for source in check.expressions]
    replies = run(program, expressions, redefined(checks), limits)
    if replies is None:
        return False
    left = iter(replies)
    return all(check.passes(*(next(left) for _ in check.expressions)) for check in checks)


def find_stub(prompt: str) -> Stub | None:
    """The last function of the prompt's code when nothing but a docstring is in it, else None."""
    for source in (source for code in [*blocks(prompt), prompt] for source in snippets(code)):
        body = _body(source)
        last = body[-1] if body else None
        if isinstance(last, ast.FunctionDef) and len(last.body) == 1 and ast.get_docstring(last) is not None:
            before = "".join(source.splitlines(keepends=True)[: last.lineno - 1])
            return Stub(before, source.rstrip() + "\n", last.name, ast.get_docstring(last))
    return None


def programs(stub: Stub | None, text: str) -> Iterator[str]:
    """Programs that ``text`` may mean, likeliest first: its fenced blocks, the code in its prose, or the body that
    goes on where the prompt's function stops."""
    fenced = blocks(text)
    for code in chain(joined(fenced), snippets(text)):
        if stub and stub.name in _functions(code):
            yield stub.before + "\n" + code
        elif stub is None and _functions(code):
            yield code
    for code in [*fenced, text] if stub else ():
        for body in (code, textwrap.indent(textwrap.dedent(code), "    ")):
            program = parsing(stub.source + body, len(stub.source.splitlines()))
            if _functions(program).get(stub.name, 0) > 1:  # more than the docstring
                yield program


def joined(fenced: list[str]) -> Iterator[str]:
    """Each block after those before it, which may hold what it calls; then alone."""
    for i, block in enumerate(fenced):
        yield parsing(textwrap.dedent("\n".join(fenced[: i + 1])))
        yield parsing(textwrap.dedent(block))


def snippets(text: str) -> Iterator[str]:
    """Code that begins on a line of its own in a text, each up to where it is no longer Python."""
    end = 0
    for start in CODE.finditer(text):
        if start.start() >= end:
            code = parsing(text[start.start() :])
            end = start.start() + len(code)
            yield code


def parsing(code: str, least: int = 0) -> str:
    """As many of the first lines of ``code`` as are Python, more than ``least``: prose may follow. "" when none are."""
    lines = code.split("\n", least + MOST_LINES)[: least + MOST_LINES]
    end = len(lines)
    while end > least:
        text = "\n".join(lines[:end]) + "\n"
        try:
            ast.parse(text)
            return text
        except SyntaxError as error:
            end = min(end, error.lineno or end) - 1  # whatever holds the line with the error holds the error
        except (ValueError, MemoryError, RecursionError):
            end -= 1
    return ""


def _functions(code: str) -> dict[str, int]:
    """Functions at the top level of ``code``: name -> statements in its body."""
    return {node.name: len(node.body) for node in _body(code) if isinstance(node, ast.FunctionDef)}


def _body(code: str) -> list[ast.stmt]:
    """The statements of code that ``parsing`` returned."""
    return ast.parse(code).body
