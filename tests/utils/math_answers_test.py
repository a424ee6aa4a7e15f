import time

import pytest

from tunix.utils import math_answers, math_rewards, math_utils


@pytest.mark.parametrize(
    ("given", "truth"),
    [
        ("1/2", "0.5"),
        (r"\frac12", r"\dfrac{1}{2}"),
        ("1,000,000", "1000000"),
        (r"12{,}500", "12500"),
        (r"50\%", "50"),
        ("50%", "0.5"),
        (r"1\frac{1}{2}", "3/2"),
        ("2 3/4", "2.75"),
        (r"\frac{\sqrt{3}}{2}", "sqrt(3)/2"),
        (r"2\sqrt{2}", r"\sqrt{8}"),
        (r"\sqrt[3]{-8}", "-2"),
        (r"3\pi", r"\pi \cdot 3"),
        ("x = 7", "7"),
        (r"7 \text{ cm}", "7"),
        ("12 dollars", r"\$12"),
        (r"90^\circ", "90"),
        ("(x+1)^2", "x^2 + 2x + 1"),
        ("-(a-b)", "b - a"),
        (r"\left(1, \frac{1}{2}\right)", "(1, 0.5)"),
        (r"\{1, 2\}", r"\{2,1\}"),
        ("1, 2, 3", "1,2,3"),
        (r"\text{Monday}", "monday"),
        ("5!", "120"),
        ("2^{-3}", "0.125"),
        ("10^{50}+1", "1" + "0" * 49 + "1"),
    ],
)
def test_answers_that_say_the_same(given, truth):
    assert math_answers.is_same(given, truth)
    assert math_answers.is_same(truth, given)


@pytest.mark.parametrize(
    ("given", "truth"),
    [
        ("0.33", "1/3"),
        ("1.414", r"\sqrt{2}"),
        ("(1, 2)", "[1, 2]"),
        ("(1, 2)", "(2, 1)"),
        ("(1, 2]", "(1, 2)"),
        ("1, 2", "1, 2, 3"),
        ("x^2 + 1", "(x+1)^2"),
        ("10^{50}+1", "10^{50}"),
        ("1/0", "2/0"),
        ("", ""),
        ("hello", "world"),
        ("12", "120"),
        ("-5", "5"),
        ("xy", "x+y"),
    ],
)
def test_answers_that_do_not(given, truth):
    assert not math_answers.is_same(given, truth)


@pytest.mark.parametrize(
    "text",
    [
        "9^9^9^9^9",
        "(" * 5000 + "1",
        "2^" * 150 + "2",
        "-" * 390 + "1",
        "1000!!!",
        "1" * 100_000,
        "__import__('os').system('true')",
        "(1).__class__",
        r"\frac{\frac{\frac",
        "((9^99)^99)^99",
        "{" * 30 + "9" * 300 + "}" * 30,
        "0" * 300 + "^-1",
    ],
)
def test_hostile_text_is_wrong_at_once_and_never_executed(text):
    start = time.perf_counter()
    assert not math_answers.is_same(text, "17")
    assert time.perf_counter() - start < 1.0


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"so \boxed{3} no, \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\fbox{4}", "4"),
        (r"\boxed{unclosed", None),
        (r"\boxed 5", "5"),
    ],
)
def test_the_last_box_counts(solution, answer):
    assert math_utils.extract_answer(solution) == answer


def test_the_final_answer_is_found_where_solutions_put_it():
    assert math_answers.final_answer("6 * 7 = 42\n#### 42") == "42"
    assert math_answers.final_answer("The answer is: **1/2**.") == "1/2"
    assert math_answers.final_answer("He has 3 left, then $1,200.50 in all.") == "$1,200.50"
    assert math_answers.final_answer("No idea") is None


def test_the_reward_reads_the_box_behind_the_thoughts():
    completions = [r"\boxed{1}</think>\boxed{0.5}", r"\boxed{0.5}</think>none", "0.5"]
    answers = [r"\frac12", "0.5", ["1", "0.5"]]
    assert math_rewards.math_reward(["?"] * 3, completions, answers) == [1.0, 0.0, 0.0]
    assert math_rewards.math_reward(["?"], [r"\boxed{2}"], [[1, 2]]) == [1.0]


def test_the_names_of_the_reference_grade_by_text_or_by_value():
    assert math_utils.grade_answer_sympy("2/4", "0.5")
    assert not math_utils.grade_answer_mathd("2/4", "0.5")
    assert math_utils.grade_answer_mathd(r"\dfrac{1}{2} ", r"\frac{1}{2}")
    assert math_utils.last_boxed_only_string(r"a \boxed{x{y}} b") == r"\boxed{x{y}}"
