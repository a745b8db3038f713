"""Numbers in answers: every way of writing one is read back, prose around it changes nothing."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.quality.graders.final_number import exact_number, final_number

whole = st.integers(-(10**12), 10**12)
sentences = st.sampled_from(
    ["{}", "The answer is {}.", "First 3, then 4; so **{}**", "= {} apples", "#### {}\nbye 7", "({})"]
)


def value(text):
    found = final_number(text)
    return found and found[0]


@given(whole, st.sampled_from(["{}", "{:,}"]), st.sampled_from(["", "$", "€"]), sentences)
def test_whole_numbers_are_read_however_written(n, style, currency, sentence):
    written = ("-" if n < 0 else "") + currency + style.format(abs(n))
    assert value(sentence.format(written)) == n


@given(st.decimals(-(10**6), 10**6, places=3), st.sampled_from(["{:f}", "{:,f}"]), sentences)
def test_decimals_are_read(n, style, sentence):
    assert value(sentence.format(style.format(n))) == Fraction(str(n))


@given(
    st.integers(0, 999),
    st.integers(1, 999),
    st.sampled_from(["{}/{}", "\\frac{{{}}}{{{}}}", "\\boxed{{\\dfrac{{{}}}{{{}}}}}"]),
)
def test_fractions_are_read(top, below, style):
    assert value("so it is " + style.format(top, below) + ".") == Fraction(top, below)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_what_python_prints_of_a_float_is_read(x):
    assert value(f"x = {x!r}") == Fraction(repr(x))


@given(st.text(max_size=200))
def test_no_text_breaks_the_parser_and_it_agrees_with_itself(text):
    found = final_number(text)
    assert exact_number("", text, text) == (None if found is None else 1.0)


@given(whole, whole)
def test_different_whole_numbers_never_match(a, b):
    assert exact_number("", str(a), f"I get {b:,}.") == float(a == b)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("There are:\n- 20 apples", 20),  # a bullet is no sign
        ("between 10-20", 20),
        ("x-5", 5),
        ("3 1/2 cups", Fraction(7, 2)),
        ("about 1.68 million", 1_680_000),
        ("1.5 × 10^3 m", 1500),
        ("1.5 \\times 10^{-3}", Fraction(3, 2000)),
        ("$\\boxed{1{,}250}$ in 3 days", 1250),
        ("\\boxed{\\text{about } \\$12}", 12),
        ("\\boxed{3} or \\boxed{4", 4),  # cut short
        ("#### 12\n#### Step 3: done, so 42", 42),  # a heading is no mark
        ("so #### 12 and 13", 12),
        ("\u22125", -5),
        ("wait...42", 42),
        ("on 1,2,3", 3),
        (".5", Fraction(1, 2)),
        ("20ml", 20),
        ("H2O", None),
        ("version 1.2.3", Fraction(6, 5)),
        ("1/0", None),
        ("9" * 5000, None),
        ("1e999999999", 1),
        ("none", None),
        ("", None),
    ],
)
def test_what_people_and_models_write(text, expected):
    assert value(text) == expected


@pytest.mark.parametrize(
    ("reference", "text", "score"),
    [
        ("#### 25", "25%", 1.0),
        ("0.25", "25%", 1.0),
        ("25%", "0.25", 1.0),
        ("25%", "25", 1.0),
        ("25%", "0.25%", 0.0),
        ("0.3333333", "1/3", 1.0),
        ("0.3333333", "0.334", 0.0),
        ("1680000", "1680001", 0.0),
        ("6", "no idea", 0.0),
        ("six", "6", None),
        (None, "6", None),
    ],
)
def test_scores(reference, text, score):
    assert exact_number("", reference, text) == score
