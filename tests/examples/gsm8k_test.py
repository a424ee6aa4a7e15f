"""The GSM8K recipe runs on its own small file, and its rewards say what they should."""

import json

import pytest

from tests.repo import source
from tunix.cli import grpo_main
from tunix.cli.loading import reward_loading
from tunix.rl.scoring import rewards

FOLDER = source.ROOT / "examples" / "gsm8k"
SAMPLE = FOLDER / "sample.jsonl"


def rows():
    return [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def manager():
    return rewards.RewardManager(
        reward_loading.load_reward_functions([str(FOLDER / "rewards.py")]), weights=[1.0, 0.2]
    )


def test_every_solution_in_the_sample_earns_everything(manager):
    solutions = [row["answer"] for row in rows()]
    assert len(solutions) == 20
    scored = manager(["?"] * 20, solutions, {"answer": solutions})
    assert scored.total.tolist() == pytest.approx([1.2] * 20)


def test_answer_and_form_are_judged_apart(manager):
    replies = {
        "4 * 2 = 8\n#### 8": 1.2,
        "4 * 2 = 8, so $8": 1.0,  # the last number
        "4 + 2 = 6\n#### 6": 0.2,
        "4 * 2 = 8\n#### 8 apples": 1.0,  # the answer counts without its unit
        "#### 8": 1.0,  # no step before it
        "I do not know.": 0.0,
    }
    scored = manager(["?"] * 6, list(replies), {"answer": ["2 each\n#### 8"] * 6})
    assert scored.total.tolist() == pytest.approx(list(replies.values()))


def test_the_recipe_runs_dry_with_a_tiny_model(tmp_path, tiny_model, monkeypatch):
    monkeypatch.chdir(source.ROOT)  # paths in the recipe start there
    directory = tmp_path / "run"
    arguments = [
        "examples/gsm8k/grpo.yaml",
        f"model_config.model_id={tiny_model}",
        f"data_path={SAMPLE}",
        f"eval_data_path={SAMPLE}",
        "batch_size=2",
        "grpo_config.num_generations=2",
        "rollout_config={total_generation_steps: 4, max_prompt_length: 512}",  # a byte is a token
        "rl_training_config.max_steps=1",
        "rl_training_config.checkpointing_options=null",
        f"run_dir={directory}",
    ]
    assert grpo_main.main(["tunix grpo", *arguments]) == 0
    summary = json.loads((directory / "summary.json").read_text())
    assert (summary["steps"], summary["num_questions"]) == (1, 20)
    completions = [
        json.loads(line) for line in (directory / "completions.jsonl").read_text().splitlines()
    ]
    assert len(completions) == 4
    assert list(completions[0]["rewards"]) == ["right_answer", "ends_with_answer"]
    assert "Solve the problem step by step" in completions[0]["prompt"]
