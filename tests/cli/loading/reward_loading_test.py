import pytest

from tunix.cli.loading import reward_loading
from tunix.rl.scoring import rewards
from tunix.utils import config


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def names(*paths):
    return [function.__name__ for function in reward_loading.load_reward_functions(paths)]


def test_helpers_and_imports_are_not_rewards(write):
    path = write(
        "rewards.py",
        "from os.path import join\n"
        "def extract(text):\n    return text\n"
        "def _private(prompts, completions):\n    return []\n"
        "class Judge:\n    pass\n"
        "def exact(prompts, completions, answer, **kwargs):\n    return [1.0]\n"
        "def short(prompts, completions):\n    return [0.0]\n",
    )
    assert names(path) == ["exact", "short"]


def test_all_chooses_and_orders(write):
    path = write(
        "rewards.py",
        "__all__ = ['b', 'a']\n"
        "def a(prompts, completions): return []\n"
        "def b(prompts, completions): return []\n"
        "def c(prompts, completions): return []\n",
    )
    assert names(path) == ["b", "a"]


def test_two_files_of_one_name_are_two_modules(write, tmp_path):
    (tmp_path / "sub").mkdir()
    first = write("r.py", "def a(prompts, completions): return [1.0]\n")
    second = write("sub/r.py", "def a(prompts, completions): return [2.0]\n")
    functions = reward_loading.load_reward_functions([first, second])
    assert [f([], []) for f in functions] == [[1.0], [2.0]]


def test_every_bad_file_is_reported(write, tmp_path):
    helper = write("helper.py", "def extract(text): return text\n")
    listed = write("listed.py", "__all__ = ['nothing']\n")
    with pytest.raises(config.ConfigError) as caught:
        reward_loading.load_reward_functions([helper, listed, str(tmp_path / "no.py")])
    first, second, third = caught.value.problems
    assert first.endswith(
        "defines no function (prompts, completions, ...); "
        "extract: it takes nothing of a reply (prompts, completions, ...)"
    )
    assert second.endswith(
        "__all__ lists 'nothing', which is no function (prompts, completions, ...)"
    )
    assert "no.py does not exist" in third


def test_a_file_may_say_how_its_functions_are_run(write):
    text = (
        "from tunix.rl.scoring import rewards\n"
        "from tunix.rl.reward_fns import formats\n"
        "def slow(prompt, completion, answer): return 1.0\n"
        "limited = rewards.Reward(fn=slow, run_in='process', time_limit=60.0)\n"
        "short = formats.LengthWithin(most=3)\n"
    )
    path = write(
        "own.py",
        text + "__all__ = ['limited', 'formed', 'short']\nformed = formats.Matches(pattern='a+')\n",
    )
    functions = reward_loading.load_reward_functions([path])
    manager = rewards.RewardManager(functions)
    assert manager.names == ("slow", "formed", "short")
    result = manager(["?"] * 2, ["aa", "b"], {"answer": [1, 2], "completion_ids": [[5], [6]]})
    manager.close()
    assert result.total.tolist() == [3.0, 2.0]
    assert names(write("sample.py", text[: text.index("limited")])) == ["slow"]
    with pytest.raises(config.ConfigError, match=r"makes \['limited'\] but has no __all__"):
        reward_loading.load_reward_functions([write("unlisted.py", text)])


COLUMNS = ("prompts", "answer", "finish_reasons", "prompt_ids", "completion_ids")


def sorted_out(path):
    """Return the names of what is used, and why the rest is not by name, with these columns."""
    used = reward_loading.load_reward_functions([path], columns=COLUMNS)
    told = reward_loading.unused_functions([path], columns=COLUMNS)
    reasons = dict(line.removeprefix(f"{path}: ").split(" is not used: ", 1) for line in told)
    return rewards.RewardManager(used).names, reasons


@pytest.mark.parametrize(
    "signature",
    [
        "completions, **kwargs",
        "completions",
        "*, completions",
        "completions, prompts, answer",
        "answer, completions",
        "completions, answer, unknown=None",
        "completion_ids, **kwargs",
        "finish_reasons",
        "completion",
        "answer, completion, **kwargs",
        "completion_ids, completion",
        "**kwargs",
    ],
)
def test_a_function_is_used_whatever_the_order_of_what_it_takes(write, signature):
    path = write(
        "mixed.py",
        "def exact(prompts, completions): return [0.0] * len(completions)\n"
        f"def fmt({signature}): return 1.0\n",
    )
    assert sorted_out(path) == (("exact", "fmt"), {})


def test_a_function_is_called_what_its_file_calls_it(write):
    path = write(
        "named.py",
        "import functools\n"
        "from tunix.rl.scoring import rewards\n"
        "from tunix.rl.reward_fns.maths import right_answer as solved\n"
        "class Near:\n"
        "    def __call__(self, completions): return [0.0]\n"
        "def _scaled(completions, by): return [by]\n"
        "def _plain(fn):\n"
        "    def wrapper(completions): return fn(completions)\n"
        "    return wrapper\n"
        "near, nearer = Near(), Near()\n"
        "half = functools.partial(_scaled, by=0.5)\n"
        "long = lambda completions: [1.0]\n"
        "short = lambda completions: [2.0]\n"
        "@_plain\n"
        "def decorated(completions): return [3.0]\n"
        "limited = rewards.Reward(fn=half, time_limit=9.0)\n"
        "titled = rewards.Reward(fn=near, name='close')\n"
        "public = ['near', 'nearer', 'half', 'solved', 'long', 'short', 'decorated']\n"
        "__all__ = [*public, 'limited', 'titled']\n",
    )
    fns = reward_loading.load_reward_functions([path])
    found = rewards.RewardManager(fns)(["?"], ["1"], {"answer": ["1"]})
    assert {name: float(score[0]) for name, score in found.per_function.items()} == {
        "near": 0.0,
        "nearer": 0.0,
        "half": 0.5,
        "solved": 1.0,
        "long": 1.0,
        "short": 2.0,
        "decorated": 3.0,
        "limited": 0.5,
        "close": 0.0,
    }
    without = "short = lambda completion: 1.0\nlong = lambda completion: 0.0\n"
    assert sorted_out(write("lambdas.py", without)) == (("short", "long"), {})


def test_functions_as_users_of_trl_write_them_score_beside_others(write):
    path = write(
        "trl.py",
        "import functools, re\n"
        "def fmt(completions, **kwargs):\n"
        "    return [float(bool(re.match('<', c))) for c in completions]\n"
        "async def judge(completions, answer, **kwargs):\n"
        "    return [float(c == a) for c, a in zip(completions, answer)]\n"
        "def logged(fn):\n"
        "    return functools.wraps(fn)(lambda *args, **kwargs: fn(*args, **kwargs))\n"
        "@logged\n"
        "def brevity(completion, **kwargs): return 1 / len(completion)\n"
        "@functools.lru_cache\n"
        "def cached(completion): return 0.5\n"
        "again = fmt\n",
    )
    names, unused = sorted_out(path)
    assert names == ("fmt", "judge", "brevity", "cached")
    assert list(unused) == ["logged"]
    manager = rewards.RewardManager(reward_loading.load_reward_functions([path]))
    assert manager(["?"] * 2, ["<", "ab"], {"answer": ["<", "x"]}).total.tolist() == [3.5, 1.0]


@pytest.mark.parametrize(
    ("text", "name", "why"),
    [
        ("def share(text): return 1.0", "share", "it takes nothing of a reply"),
        ("def main(): pass", "main", "it takes nothing of a reply"),
        ("def norm(answer): return answer", "norm", "it takes nothing of a reply"),
        ("def hard(prompts, answer): return []", "hard", "it takes nothing of a reply"),
        ("def mean(completions, by): pass", "mean", "it needs 'by', of which neither data nor"),
        ("def typo(answr, completions): pass", "typo", "has any (did you mean 'answer'?)"),
        ("def of(completions, /): pass", "of", "it takes 'completions' by its place"),
        ("def both(completion, completions): pass", "both", "both whole batches and single"),
        ("from lib import exact", "exact", "it is imported from lib; list it in __all__ to use"),
        ("from lib import extract", "extract", "it is imported from lib"),
        ("from lib import Judge\njudge = Judge()", "judge", "it is an object, not a function"),
        (
            "import functools, lib\npart = functools.partial(lib.exact, answer=1)",
            "part",
            "it is an object, not a function; list it in __all__ to use it",
        ),
    ],
)
def test_what_is_not_used_is_told_with_the_reason(write, text, name, why):
    write(
        "lib.py",
        "def exact(prompts, completions, answer): return []\n"
        "def extract(text): return text\n"
        "class Judge:\n    def __call__(self, completions): return []\n",
    )
    path = write("own.py", f"{text}\ndef used(completions): return [1.0]\n")
    names, unused = sorted_out(path)
    assert names == ("used",) and list(unused) == [name] and why in unused[name]


def test_what_nobody_takes_for_a_reward_is_not_told_of(write):
    path = write(
        "own.py",
        "import math, json\nfrom os.path import join\nfrom math import sqrt\n"
        "from pathlib import Path\nimport numpy as np\nfrom dataclasses import dataclass\n"
        "from typing import Any, Callable, List, Optional, Union\n"
        "from collections import *\nfrom typing import *\n"
        "LIMIT = 3\nclass Helper:\n    pass\n_hidden = lambda completions: []\n"
        "def used(completions): return [1.0]\n",
    )
    assert sorted_out(path) == (("used",), {})


def test_many_functions_that_are_not_used_for_one_reason_are_one_line(write):
    write("many.py", "".join(f"def f{i}(x): return x\n" for i in range(30)))
    text = "from many import *\ndef a(x): pass\ndef b(x): pass\ndef used(completion): return 1.0\n"
    path = write("own.py", text)
    imported, others = reward_loading.unused_functions([path], columns=COLUMNS)
    assert imported == (
        f"{path}: f0, f1, f2, f3, f4 and 25 more are not used, of each: it is imported from many"
    )
    assert others.startswith(f"{path}: a, b are not used, of each: it takes nothing of a reply")


@pytest.mark.parametrize(
    "body",
    [
        "def __getattr__(self, name): raise RuntimeError('no such thing')",
        "def __getattribute__(self, name): raise RuntimeError('no such thing')",
        "__class__ = property(lambda self: 1 / 0)",
        "__signature__ = property(lambda self: exec('raise RuntimeError(3)'))",
    ],
)
def test_an_object_that_cannot_be_looked_at_is_told_of_and_left_out(write, body):
    text = "def __call__(self, completions): return [1.0]\n"
    path = write(
        "own.py",
        f"class Evil:\n    {text}    {body}\nevil = Evil()\ndef used(completions): return [1.0]\n",
    )
    names, unused = sorted_out(path)
    assert names == ("used",) and list(unused) == ["evil"]


def test_a_list_that_is_a_text_is_told_of_as_such(write):
    path = write("own.py", "__all__ = 'used'\ndef used(completions): return [1.0]\n")
    with pytest.raises(config.ConfigError, match=r"__all__ is a text; write \['used'\]"):
        reward_loading.load_reward_functions([path])


@pytest.mark.parametrize("signature", ["prompts, completions, answr", "completions, answr, **rest"])
def test_a_reward_beyond_doubt_that_lacks_a_column_is_no_function_to_leave_out(write, signature):
    path = write("own.py", f"def exact({signature}): return []\ndef b(completions): return []\n")
    (names, unused) = sorted_out(path)
    assert names == ("exact", "b") and not unused
    manager = rewards.RewardManager(reward_loading.load_reward_functions([path], columns=COLUMNS))
    with pytest.raises(rewards.RewardError, match="exact needs the column 'answr'"):
        manager.check_columns(COLUMNS)


def test_a_file_of_which_nothing_can_be_used_says_why_of_each(write):
    path = write("own.py", "def a(completions, x): pass\ndef b(text): pass\n")
    with pytest.raises(config.ConfigError) as caught:
        reward_loading.load_reward_functions([path], columns=COLUMNS)
    (problem,) = caught.value.problems
    assert "a: it needs 'x'" in problem and "b: it takes nothing of a reply" in problem
