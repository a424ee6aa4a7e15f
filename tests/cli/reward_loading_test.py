import pytest

from tunix.cli import reward_loading
from tunix.rl import rewards
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
    assert first.endswith("defines no function (prompts, completions, ...); it defines ['extract']")
    assert second.endswith(
        "__all__ lists 'nothing', which is no function (prompts, completions, ...)"
    )
    assert "no.py does not exist" in third


def test_a_file_may_say_how_its_functions_are_run(write):
    text = (
        "from tunix.rl import rewards\n"
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
    assert manager.names == ("slow", "Matches", "LengthWithin")
    result = manager(["?"] * 2, ["aa", "b"], {"answer": [1, 2], "completion_ids": [[5], [6]]})
    manager.close()
    assert result.total.tolist() == [3.0, 2.0]
    assert names(write("sample.py", text[: text.index("limited")])) == ["slow"]
    with pytest.raises(config.ConfigError, match=r"makes \['limited'\] but has no __all__"):
        reward_loading.load_reward_functions([write("unlisted.py", text)])
