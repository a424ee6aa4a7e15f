import sys

import pytest

from tunix.rl import rewards
from tunix.rl.reward_fns import code_execution

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


@pytest.mark.parametrize("row", ["assert add(1, 2) == 3", {"stdin": "", "stdout": ""}])
def test_a_test_that_is_in_no_list_is_not_taken_letter_by_letter(row):
    with pytest.raises(ValueError, match=r"tests must be a list of tests for every row"):
        code_execution.CodeExecution()([ADD], [row])
