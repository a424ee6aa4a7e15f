"""What a run says of its rewards and prompts before the first step."""

import pytest

from tests.cli import grpo_main_test
from tunix.cli import errors, grpo_main
from tunix.cli.running import rl_run
from tunix.utils import config

REWARDS = """
def exact(prompts, completions, answer):
    return [0.0] * len(completions)

def short(completions, **kwargs):
    return [0.0] * len(completions)

def helper(completion, threshold):
    return 0.0
"""


@pytest.fixture
def first_lines(tmp_path, tiny_model, capsys, monkeypatch):
    """Return what a run prints that ends before it samples anything."""

    def stop(*args):
        raise config.ConfigError("the test", ["ends here"])

    monkeypatch.setattr(rl_run, "_train_and_measure", stop)

    def first_lines(*overrides):
        base = grpo_main_test.write_job(
            tmp_path, tiny_model, batch_size=2, num_train_epochs=1, eval_data_path=None
        )
        (tmp_path / "rewards.py").write_text(REWARDS)
        line = ["tunix grpo", str(base), f"run_dir={tmp_path / 'run'}", *overrides]
        assert errors.run(grpo_main.main, line) == errors.USAGE_ERROR
        shown = capsys.readouterr()
        assert "ends here" in shown.err
        return shown.out

    return first_lines


def test_functions_and_their_weights_are_named(first_lines):
    shown = first_lines("grpo_config.reward_weights=[1, 0.25]")
    assert "rewards    exact, 0.25 x short\n" in shown
    assert "rewards.py: helper is not used: it needs 'threshold', of which neither" in shown


def test_text_that_misses_the_chat_template_is_noted(first_lines):
    assert "without its chat template" in first_lines()
    assert "chat template" not in first_lines("system_prompt='Be brief.'", "too_long=filter",
                                              "rollout_config.max_prompt_length=200")  # fmt: skip


def test_rows_that_make_no_whole_batch_are_counted(first_lines):
    expected = "batch_size 3 does not divide 8 rows: every epoch leaves out 2, drawn anew each time"
    assert expected in first_lines("batch_size=3")
    assert "does not divide" not in first_lines()
