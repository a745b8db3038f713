"""SQL answers: equal queries match however written, different ones do not, and no query changes or holds anything."""

import sqlite3
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.quality.graders.sql_answers import execute, execution_match, find_query, is_ordered, same_rows
from train.quality.graders.sql_databases import databases, statements

SCHEMA = """Given the schema

CREATE TABLE singer (singer_id INT PRIMARY KEY, name VARCHAR(30) NOT NULL, country TEXT, age INT, pay DECIMAL(8, 2));
CREATE TABLE concert (
    concert_id INTEGER PRIMARY KEY, singer_id INT, year TEXT CHECK (year <> '('),
    FOREIGN KEY (singer_id) REFERENCES singer(singer_id)
);

write a query."""

values = st.none() | st.integers(-3, 3) | st.sampled_from([0.5, 1.0, 2.0]) | st.sampled_from(["a", "A", "", "1"])
tables = st.lists(st.tuples(values, values), max_size=6)


@given(tables, st.randoms(use_true_random=False))
def test_order_matters_only_where_asked(rows, rng):
    shuffled = rng.sample(rows, len(rows))
    assert same_rows(rows, shuffled, ordered=False)
    assert same_rows(rows, shuffled, ordered=True) == (rows == shuffled)


@given(tables, tables)
def test_rows_count_as_often_as_they_come(a, b):
    equal = len(a) == len(b) and all(a.count(row) == b.count(row) for row in a)
    assert same_rows(a, b, ordered=False) == equal == same_rows(b, a, ordered=False)


def test_numbers_are_rounded_and_failures_equal_nothing():
    assert same_rows([(0.1 + 0.2, 1)], [(0.3, 1.0)], ordered=False)
    assert not same_rows([(0.3,)], [(0.3001,)], ordered=False)
    assert not same_rows([("1",)], [(1,)], ordered=False)
    assert not same_rows([], None, ordered=False)


@pytest.mark.parametrize(
    ("query", "ordered"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("select a from t order\n by a limit 1", True),
        ("SELECT a FROM (SELECT b FROM t ORDER BY (b))", False),
        ("SELECT 'order by' FROM t -- order by a", False),
        ("SELECT rank() OVER (ORDER BY a) FROM t", False),
    ],
)
def test_order_by_counts_outside_of_parentheses(query, ordered):
    assert is_ordered(query) == ordered


RIGHT = [
    (
        "SELECT name FROM singer WHERE age > 30",
        "```sql\nselect s.name\nfrom singer s where 30 < s.age;\n```\nIt filters.",
    ),
    ("SELECT count(*) FROM singer", "With this query you count them: SELECT count(singer_id) AS n FROM singer;"),
    (
        "SELECT T1.name, count(*) FROM singer T1 JOIN concert T2 ON T1.singer_id = T2.singer_id "
        "WHERE T2.year = '2014' GROUP BY T1.singer_id",
        "SELECT name, n FROM (SELECT name, (SELECT count(*) FROM concert c WHERE c.singer_id = s.singer_id AND "
        "year = '2014') AS n FROM singer s) WHERE n > 0",
    ),
    (
        "SELECT name FROM singer ORDER BY age DESC LIMIT 1",
        "SELECT name FROM singer WHERE age = (SELECT max(age) FROM singer)",
    ),
    (
        "SELECT avg(pay) FROM singer WHERE country = 'France'",
        "SELECT sum(pay) / count(pay) FROM singer WHERE country = 'France'",
    ),
    ("SELECT name FROM singer WHERE name LIKE '%ab%'", "SELECT name FROM singer WHERE instr(lower(name), 'ab')"),
]
WRONG = [
    ("SELECT name FROM singer WHERE age > 30", "SELECT name FROM singer WHERE age >= 30"),
    ("SELECT name FROM singer WHERE country = 'France'", "SELECT name FROM singer WHERE country = 'france'"),
    ("SELECT name FROM singer", "SELECT DISTINCT name FROM singer WHERE country IS NOT NULL"),
    ("SELECT name FROM singer ORDER BY age", "SELECT name FROM singer"),
    ("SELECT name FROM singer ORDER BY age", "SELECT name FROM singer ORDER BY age DESC"),
    ("SELECT name, age FROM singer", "SELECT age, name FROM singer"),
    ("SELECT count(*) FROM singer", "SELECT count(*) FROM singers"),
    ("SELECT count(*) FROM singer", "I would select the singers with care."),
    ("SELECT count(*) FROM singer", "DELETE FROM singer"),
    ("SELECT count(*) FROM singer", ""),
]


@pytest.mark.parametrize(("reference", "answer"), RIGHT)
def test_the_same_question_asked_otherwise(reference, answer):
    assert execution_match(SCHEMA, reference, answer) == 1.0
    assert execution_match(SCHEMA, reference, reference) == 1.0


@pytest.mark.parametrize(("reference", "answer"), WRONG)
def test_another_question(reference, answer):
    assert execution_match(SCHEMA, reference, answer) == 0.0


@pytest.mark.parametrize(
    ("prompt", "reference"),
    [
        (SCHEMA, None),
        (SCHEMA, "no query"),
        (SCHEMA, "SELECT count(*) FROM nothing"),
        (SCHEMA, "SELECT name FROM singer WHERE age > age"),  # finds nothing anywhere
        ("singer(name, age): write a query", "SELECT name FROM singer"),
        ("CREATE TABLE singer (name TEXT,, age INT)", "SELECT name FROM singer"),
        ("CREATE TABLE singer (", "SELECT 1"),
    ],
)
def test_what_cannot_be_told_is_not_graded(prompt, reference):
    assert execution_match(prompt, reference, "SELECT name FROM singer") is None


def test_rows_of_the_prompt_come_first():
    rows = "INSERT INTO singer VALUES (1, 'Zoe; x', 'FR', 99, 1.5), (2, 'Ann', 'DE', 7, 2);"
    names = "SELECT name FROM singer ORDER BY name"
    own = [execute(d, names) for d in databases(statements(SCHEMA + "\n" + rows), "")]
    assert own[0] == [("Ann",), ("Zoe; x",)] and all(len(found) > 1 for found in own[1:])
    assert own[1:] == [execute(d, names) for d in databases(statements(SCHEMA), "")]


def test_databases_are_the_same_every_time_and_hold_what_is_asked_for():
    query = "SELECT name FROM singer WHERE country = 'Peru' AND age > 20 AND pay < 100"
    found = [[execute(d, query) for d in databases(statements(SCHEMA), query)] for _ in range(2)]
    assert found[0] == found[1] and sum(map(bool, found[0])) > 5


@pytest.fixture
def database():
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript("CREATE TABLE t (a); INSERT INTO t VALUES (1), (2);")
    return connection


@pytest.mark.parametrize(
    "query",
    [
        "DROP TABLE t",
        "DELETE FROM t RETURNING a",
        "UPDATE t SET a = 3",
        "ATTACH 'x' AS x",
        "PRAGMA table_info(t)",
        "SELECT load_extension('x')",
        "CREATE TABLE u (a)",
        "SELECT 1; DROP TABLE t",
    ],
)
def test_queries_only_read(database, query):
    assert execute(database, query) is None
    assert database.execute("SELECT a FROM t").fetchall() == [(1,), (2,)]


@pytest.mark.parametrize(
    "query",
    [
        "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT count(*) FROM r",
        "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT x FROM r",
        "SELECT zeroblob(2000000000)",
    ],
)
def test_queries_end(query):
    several = databases(statements(SCHEMA), query)
    database = next(several)
    start = time.monotonic()
    assert execute(database, query) is None
    assert time.monotonic() - start < 20


@given(st.text(max_size=80), st.sampled_from(["", "```sql\n", "SELECT ", "WITH x AS ("]))
def test_no_text_breaks_the_search_for_a_query(text, start):
    find_query(start + text)


def test_a_query_is_found_up_to_its_own_semicolon():
    assert find_query("SELECT ';' FROM t; -- done") == "SELECT ';' FROM t"
    assert find_query("Select the name:\n\nSELECT a\nFROM t\n\nThis is it.") == "SELECT a\nFROM t"
    assert find_query("```\nCREATE TABLE t (a)\n```\n```sql\nSELECT a FROM t\n```") == "SELECT a FROM t"


def test_filling_keeps_to_constraints():
    prompt = "CREATE TABLE t (id INTEGER PRIMARY KEY, a INT NOT NULL CHECK (a > 30), b TEXT UNIQUE)"
    rows = [row for database in databases(statements(prompt), "") for row in execute(database, "SELECT a FROM t")]
    assert rows and all(a > 30 for (a,) in rows)
