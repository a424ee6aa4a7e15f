import json
import sys

import pytest
import yaml

from tests.cli import grpo_main_test
from tunix.cli import errors, grpo_main, ppo_main
from tunix.cli.loading import python_files, reward_loading
from tunix.rl import function_registry
from tunix.rl.scoring import rewards
from tunix.utils import config

REGISTERED = """
import pathlib

import helper_beside
from tunix.rl import function_registry, reward_manager
from tunix.rl.objectives import advantages, aggregation, kl, losses
from tunix.rl.objectives import rollout_correction, token_advantages

CALLED = pathlib.Path(__file__).with_name("called.txt")


def noted(name, fn):
    def own(*args, **kwargs):
        with CALLED.open("a") as file:
            file.write(name + "\\n")
        return fn(*args, **kwargs)

    return own


for category, fn in {
    "advantage_estimator": advantages.group_relative,
    "token_advantage_estimator": token_advantages.gae,
    "policy_loss_fn": losses.clipped_surrogate,
    "loss_algo": losses.IMPORTANCE_RATIOS["gspo"],
    "loss_agg_mode": aggregation.AGGREGATIONS["token-mean"],
    "kl_estimator": kl.KL_ESTIMATORS["k1"],
    "rollout_correction": rollout_correction.ROLLOUT_CORRECTIONS["truncated-token"],
}.items():
    register = function_registry.default_registry.register(category, "own-" + category)
    register(noted(category, fn))


@function_registry.register_reward_manager("own-reward_manager")
class Noted(reward_manager.SequenceRewardManager):
    def combine(self, scores):
        return noted("reward_manager", super().combine)(scores)
"""
COMMON = ("policy_loss_fn", "loss_algo", "loss_agg_mode", "rollout_correction", "reward_manager")


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Return names that are forgotten after the test."""
    fresh = function_registry.FunctionRegistry()
    monkeypatch.setattr(function_registry, "default_registry", fresh)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return fresh


@pytest.fixture
def base(tmp_path, tiny_model):
    (tmp_path / "helper_beside.py").write_text("x = 1\n")
    (tmp_path / "own.py").write_text(REGISTERED)
    return grpo_main_test.write_job(
        tmp_path,
        tiny_model,
        batch_size=2,
        eval_data_path=None,
        rl_training_config={"max_steps": 1, "checkpointing_options": None},
    )


def own(block, *fields, **named):
    """Return arguments that choose the user's functions."""
    chosen = {field: f"own-{field}" for field in fields} | named
    return [f"{block}.{field}={name}" for field, name in chosen.items()]


@pytest.mark.parametrize("is_run", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_ppo_uses_functions_that_a_file_registers_under_names(base, capsys, is_run):
    arguments = own(
        "ppo_config",
        *COMMON,
        kl_method="own-kl_estimator",
        advantage_estimator="own-token_advantage_estimator",
    )
    files = f"python_files=[{base.parent / 'own.py'}]"
    run = f"run_dir={base.parent / 'run'}"
    command = ["tunix ppo", str(base), run, files, *arguments]
    if not is_run:
        assert ppo_main.main([*command, "--print-config"]) == 0
        chosen = yaml.safe_load(capsys.readouterr().out)["ppo_config"]
        assert chosen["advantage_estimator"] == "own-token_advantage_estimator"
        return
    assert ppo_main.main(command) == 0
    called = set((base.parent / "called.txt").read_text().split())
    assert called == {*COMMON, "kl_estimator", "token_advantage_estimator"}


def test_a_file_of_rewards_may_register_too_and_is_executed_once(base, capsys):
    rewards = base.parent / "rewards.py"
    counted = "open(__file__ + '.count', 'a').write('x')\n"
    rewards.write_text(grpo_main_test.REWARDS + REGISTERED + counted)
    arguments = own("grpo_config", *COMMON, "advantage_estimator", "kl_estimator")
    command = ["tunix grpo", str(base), *arguments, f"run_dir={base.parent / 'run'}"]
    assert grpo_main.main([*command, "--print-config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["grpo_config"]["reward_manager"] == "own-reward_manager"
    assert grpo_main.main(command) == 0
    assert (base.parent / "rewards.py.count").read_text() == "x"
    called = set((base.parent / "called.txt").read_text().split())
    assert called == {*COMMON, "advantage_estimator", "kl_estimator"}
    completions = (base.parent / "run" / "completions.jsonl").read_text().splitlines()
    assert set(json.loads(completions[0])["rewards"]) == {"likes_ascii"}


def message_of(capsys, main, base, *overrides):
    arguments = ["tunix", str(base), "--print-config", *overrides]
    assert errors.run(main, arguments) == errors.USAGE_ERROR
    return capsys.readouterr().err


def test_a_name_that_is_not_known_is_answered_with_the_one_that_may_be_meant(base, capsys):
    files = f"python_files=[{base.parent / 'own.py'}]"
    message = message_of(
        capsys,
        ppo_main.main,
        base,
        files,
        "ppo_config.reward_manager=own-reward_manger",
        "ppo_config.advantage_estimator=own-advantage_estimator",
        "ppo_config.loss_algo=mine",
    )
    assert "(did you mean 'own-reward_manager'?)" in message
    assert "is registered as advantage_estimator; wanted is token_advantage_estimator" in message
    assert "(register a function of your own as 'loss_algo' first)" in message


def test_files_that_are_no_list_are_reported_with_the_other_settings(base, capsys):
    message = message_of(capsys, grpo_main.main, base, "python_files=own.py", "batch_size=0")
    assert "python_files must be a list, each item text, got 'own.py'; write [own.py]" in message


def test_a_file_that_fails_is_named_with_its_line(tmp_path, monkeypatch):
    (tmp_path / "raises.py").write_text("x = 1\n1 / 0\n")
    (tmp_path / "syntax.py").write_text("x = 1\ndef\n")
    (tmp_path / "missing.py").write_text("\nimport no_such_module\n")
    (tmp_path / "exits.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "twice.py").write_text(
        "from tunix.rl import function_registry\n"
        "function_registry.register_advantage_estimator('grpo')(lambda rewards: rewards)\n"
    )
    (tmp_path / "text.txt").write_text("x = 1\n")
    monkeypatch.chdir(tmp_path)
    names = ["raises.py", "syntax.py", "missing.py", "exits.py", "twice.py", "text.txt", "no.py"]
    with pytest.raises(config.ConfigError) as caught:
        python_files.load(names, key="python_files")
    raises, syntax, missing, exits, twice, text, no = caught.value.problems
    assert raises == "raises.py, line 2: ZeroDivisionError: division by zero"
    assert syntax == "syntax.py: SyntaxError: invalid syntax (syntax.py, line 2)"
    assert missing == "missing.py, line 2: ModuleNotFoundError: No module named 'no_such_module'"
    assert exits == "exits.py, line 1: SystemExit: 3"
    assert twice.startswith("twice.py, line 2: ValueError: advantage_estimator 'grpo' is already")
    assert text == "text.txt: ImportError: it is not a Python file: its name should end in .py"
    assert no.startswith("no.py does not exist (looked in ")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_reward_in_a_process_finds_what_lies_beside_its_file(tmp_path):
    (tmp_path / "lengths_beside.py").write_text("def of(text): return float(len(text))\n")
    path = tmp_path / "mine.py"
    path.write_text(
        "import lengths_beside\n"
        "from tunix.rl.scoring import rewards\n"
        "def long(completion): return lengths_beside.of(completion)\n"
        "careful = rewards.Reward(fn=long, run_in='process', workers=1)\n"
        "__all__ = ['careful']\n"
    )
    manager = rewards.RewardManager(reward_loading.load_reward_functions([str(path)]))
    assert manager(["?"] * 2, ["a", "bbb"], {}).total.tolist() == [1.0, 3.0]
    manager.close()


def test_a_file_is_executed_again_when_its_text_changes(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("x = 1\n")
    (first,) = python_files.load([str(path)], key="python_files")
    assert python_files.load([str(path)], key="reward_functions") == [first]
    path.write_text("x = 2\n")
    (second,) = python_files.load([str(path)], key="python_files")
    assert (first.x, second.x) == (1, 2)


def test_the_users_home_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.py").write_text("value = 5\n")
    assert python_files.load(["~/own.py"], key="python_files")[0].value == 5
