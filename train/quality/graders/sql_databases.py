"""Small random databases for the schema in a prompt, made so that a given query returns rows."""

import contextlib
import random
import re
import sqlite3
from collections.abc import Iterator

FILLINGS = 40
"""most databases for one query, including the one with the prompt's own rows"""
ROWS = 12
"""rows tried for each table; those that break a constraint are dropped"""
MEMORY = 1 << 20
"""bytes of the longest value"""
CREATE = re.compile(r"\bCREATE\s+TABLE\b[^();]*\(", re.IGNORECASE)
INSERT = re.compile(r"^\s*INSERT\s+INTO\b(?:'(?:[^']|'')*'|[^;'])*;", re.IGNORECASE | re.MULTILINE)
LITERAL = re.compile(r"'((?:[^']|'')*)'|\"([^\"]*)\"|(?<![\w.])(\d+(?:\.\d+)?)(?![\w.])")
WORDS = ("amber", "birch", "coral", "delta", "ember", "fjord", "grove", "heron", "iris", "jade")

Schema = tuple[list[str], list[str]]


def statements(prompt: str) -> Schema:
    """(CREATE TABLE statements, INSERT statements) of a prompt."""
    tables = [prompt[m.start() : _closing(prompt, m.end())] for m in CREATE.finditer(prompt)]
    return tables, INSERT.findall(prompt)


def _closing(text: str, start: int) -> int:
    """The index after the parenthesis that closes the one opened before ``start``."""
    depth = 1
    for match in re.compile(r"'(?:[^']|'')*'|[()]").finditer(text, start):
        depth += {"(": 1, ")": -1}.get(match.group(), 0)
        if depth == 0:
            return match.end()
    return len(text)


def databases(schema: Schema, query: str) -> Iterator[sqlite3.Connection]:
    """In-memory databases with the schema's tables: first with its own rows, if it has any, then with random rows.

    The random rows are always the same. There is no database when SQLite does not accept the schema.
    """
    tables, inserts = schema
    for seed in range(0 if inserts else 1, FILLINGS):
        with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as database:
            try:
                for statement in tables + (inserts if seed == 0 else []):
                    database.execute(statement)
            except (sqlite3.Error, sqlite3.Warning):
                return
            if seed > 0:
                fill(database, query, random.Random(seed))
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MEMORY)
            yield database


def fill(database: sqlite3.Connection, query: str, rng: random.Random) -> None:
    """Insert rows of values shared by all tables, so that joins match; the query's own literals are among them."""
    numbers, texts = literals(query)
    for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        name = '"' + table.replace('"', '""') + '"'
        columns = database.execute(f"PRAGMA table_info({name})").fetchall()
        linked = {row[3] for row in database.execute(f"PRAGMA foreign_key_list({name})")}
        marks = ", ".join("?" * len(columns))
        for _ in range(rng.randint(ROWS // 2, ROWS)):
            row = [_value(column, column[1] in linked, numbers, texts, rng) for column in columns]
            with contextlib.suppress(sqlite3.Error):
                database.execute(f"INSERT OR IGNORE INTO {name} VALUES ({marks})", row)


def _value(column: tuple, linked: bool, numbers: list[float], texts: list[str], rng: random.Random) -> object:
    """A value for one column, described by (number, name, type, not null, default, primary key)."""
    _, name, kind, needed, _, key = column
    if not (needed or key or linked) and rng.random() < 0.05:
        return None
    textual = re.search(r"char|text|clob|date|time|enum|string", kind, re.IGNORECASE)
    if textual:
        return rng.choice(texts) if texts and rng.random() < 0.4 else rng.choice(WORDS)
    if key or linked or name.lower().endswith("id"):
        return rng.randint(1, ROWS)
    if numbers and rng.random() < 0.4:
        return rng.choice(numbers) + rng.choice((-1, 0, 0, 1))
    real = re.search(r"real|floa|doub|dec|num", kind, re.IGNORECASE)
    return round(rng.uniform(0, 60), 1) if real else rng.randint(0, 60)


def literals(query: str) -> tuple[list[float], list[str]]:
    """(numbers, texts) in a query; of a LIKE pattern its text. Numbers are texts too, since a year may be text."""
    found = LITERAL.findall(query)
    numbers = [float(n) if "." in n else int(n) for _, _, n in found if n]
    texts = [(a.replace("''", "'") or b or n).replace("%", "").replace("_", "x") for a, b, n in found]
    return numbers, texts
