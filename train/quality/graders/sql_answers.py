"""Grader of SQL by execution accuracy: answer and reference must return the same rows (Spider, Yu et al. 2018).

Queries run on several random databases, as in test suite accuracy (Zhong et al. 2020): on one database, wrong queries
can agree.
"""

import contextlib
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator

from train.quality.graders.fences import blocks
from train.quality.graders.sql_databases import databases, statements

SECONDS = 1.0
"""time of one query"""
MOST_ROWS = 10_000
ENOUGH = 10
"""databases on which the reference returns rows"""
QUERY = re.compile(r"\b(?:SELECT|WITH)\b", re.IGNORECASE)
HIDDEN = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"|--[^\n]*|/\*.*?\*/", re.DOTALL)
ALLOWED = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)

Rows = list[tuple]


def execution_match(prompt: str, reference: str | None, text: str) -> float | None:
    """1.0 when the query in ``text`` returns the reference's rows on every informative database, else 0.0.

    The prompt holds the CREATE TABLE statements; if it holds INSERT statements too, their database is the first. Rows
    are compared as a multiset, in order where the reference ends in ORDER BY; column names do not matter. None when
    SQLite cannot read the schema, or the reference returns no row on any database.
    """
    right = None if reference is None else find_query(reference)
    if right is None:
        return None
    given = find_query(text)
    informed, agrees = 0, given is not None
    for database, rows in informative(prompt, right):
        informed += bool(rows)
        agrees = agrees and same_rows(rows, execute(database, given), is_ordered(right))
        if informed == ENOUGH or (informed and not agrees):
            break
    return float(agrees) if informed else None


def informative(prompt: str, query: str) -> Iterator[tuple[sqlite3.Connection, Rows]]:
    """(database, rows of ``query``), without databases on which the rows depend on their order on disk.

    There, by ties under LIMIT, a right answer may differ.
    """
    for database in databases(statements(prompt), query):
        rows = execute(database, query)
        if rows is None:
            return
        database.execute("PRAGMA reverse_unordered_selects = ON")
        again = execute(database, query)
        database.execute("PRAGMA reverse_unordered_selects = OFF")
        if same_rows(rows, again, is_ordered(query)):
            yield database, rows


def find_query(text: str) -> str | None:
    """The first query of an answer: in a fenced block, else from a SELECT or WITH that is not prose.

    It ends at its semicolon, a blank line or the end of the text.
    """
    for code in [*blocks(text), text.split("```")[0]]:
        for start in QUERY.finditer(code):
            after = code[start.start() :]
            hidden = HIDDEN.sub(lambda m: " " * len(m.group()), after) + ";"  # a semicolon in quotes ends nothing
            query = re.split(r"\n\s*\n", after[: hidden.index(";")])[0].strip()
            if _is_query(query):
                return query
    return None


def _is_query(text: str) -> bool:
    """Whether SQLite parses the text. A missing table is an error after parsing, so it does not count."""
    try:
        with contextlib.closing(sqlite3.connect(":memory:")) as empty:
            empty.execute(f"EXPLAIN {text}")
    except (sqlite3.Error, sqlite3.Warning) as error:
        return str(error).startswith("no such")
    except ValueError:  # a NUL or half a surrogate pair
        return False
    return True


def is_ordered(query: str) -> bool:
    """Whether the query has ORDER BY outside of parentheses."""
    covered = HIDDEN.sub(" ", query)
    while (inner := re.sub(r"\([^()]*\)", " ", covered)) != covered:
        covered = inner
    return re.search(r"\border\s+by\b", covered, re.IGNORECASE) is not None


def execute(database: sqlite3.Connection, query: str) -> Rows | None:
    """The rows of a read-only query; None when it fails, exceeds SECONDS or returns over MOST_ROWS."""
    end = time.monotonic() + SECONDS
    database.set_progress_handler(lambda: time.monotonic() > end, 10_000)
    database.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in ALLOWED else sqlite3.SQLITE_DENY)
    try:
        with contextlib.closing(database.execute(query)) as cursor:
            rows = cursor.fetchmany(MOST_ROWS + 1)
        return rows if len(rows) <= MOST_ROWS else None
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError):
        return None
    finally:
        database.set_progress_handler(None, 0)
        database.set_authorizer(None)


def same_rows(wanted: Rows, given: Rows | None, ordered: bool) -> bool:
    """Equality as multisets, or as lists when ``ordered``; numbers to 9 digits (1 is 1.0), text and NULL exactly.

    None, from a query that failed, equals nothing.
    """
    if given is None:
        return False
    left, right = ([tuple(map(_rounded, row)) for row in rows] for rows in (wanted, given))
    return left == right if ordered else Counter(left) == Counter(right)


def _rounded(value: object) -> object:
    return float(f"{value:.9g}") if isinstance(value, float) else value
