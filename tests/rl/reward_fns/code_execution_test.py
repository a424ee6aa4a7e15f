import sys

import pytest

from tunix.rl.reward_fns import code_execution, sandbox
from tunix.rl.scoring import rewards

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")

ADD = "Here:\n```python\ndef add(a, b):\n    return a + b\n```\nDone."
ECHO = "for line in open(0): print(line.strip()[::-1], '')"


def test_the_score_is_the_share_of_tests_that_pass():
    tests = ["assert add(1, 2) == 3", "assert add(1, 2) == 4"]
    cases = [{"stdin": "ab\ncd\n", "stdout": "ba\ndc"}, {"stdin": "x", "stdout": "y"}]
    completions = [ADD, ECHO, "import os; os._exit(0)", "no code at all", ADD]
    score = code_execution.CodeExecution()
    completions.append(ADD)
    result = score(completions, [tests, cases, tests, tests, [], None])
    assert result == [0.5, 0.5, 0.0, 0.0, None, None]
    strict = code_execution.CodeExecution(all_or_nothing=True)
    assert strict([ADD, ADD], [tests, tests[:1]]) == [0.0, 1.0]


def test_a_test_that_is_none_is_the_users_mistake_and_no_score():
    manager = rewards.RewardManager(code_execution.CodeExecution())
    with pytest.raises(rewards.RewardError, match=r"CodeExecution raised ValueError: a test is"):
        manager(["?"], [ADD], {"tests": [[{"input": "1"}]]})


@pytest.mark.parametrize("test", [{"stdin": None, "stdout": "5"}, {"stdin": "", "stdout": 5}, 5])
def test_a_test_without_text_is_told_of_in_words(test):
    with pytest.raises(ValueError, match=r"stdin and stdout, which are texts, got .*5"):
        code_execution.CodeExecution()(["print(5)"], [[test]])


@pytest.mark.parametrize(
    ("program", "test", "passes"),
    [
        ("print('a' * 999)\nprint('wrong' * 100)", {"stdin": "", "stdout": "a" * 999}, False),
        ("print('a' * 2_000)", {"stdin": "", "stdout": "a" * 2_000}, True),
        ("print('a' * 2_000)", {"stdin": "", "stdout": "a" * 1_000}, False),
        ("print('a' * 2_000)", "assert True", True),
        ("print('a' * 2_000)", "assert False", False),
    ],
)
def test_output_beyond_what_a_result_keeps_counts_all_the_same(program, test, passes):
    limits = sandbox.SandboxLimits(output_bytes=1_000, file_bytes=8_000)
    found = code_execution.CodeExecution(limits=limits)([program], [[test]])
    assert found == [float(passes)]


@pytest.mark.parametrize("row", ["assert add(1, 2) == 3", {"stdin": "", "stdout": ""}])
def test_a_test_that_is_in_no_list_is_not_taken_letter_by_letter(row):
    with pytest.raises(ValueError, match=r"tests must be a list of tests for every row"):
        code_execution.CodeExecution()([ADD], [row])
