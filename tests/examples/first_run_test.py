"""The tutorial of a first run prints the files that are in the repository, and its commands run."""

import json
import re
import shlex

import pytest
import yaml

from tests.repo import source
from tunix.cli import command, main
from tunix.cli.loading import reward_loading
from tunix.cli.schemas import grpo_schema
from tunix.rl.scoring import rewards
from tunix.utils import json_lines

PAGE = source.ROOT / "docs" / "tutorials" / "first_rl_run.md"
FOLDER = source.ROOT / "examples" / "first_run"
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def blocks(kind):
    return [text for name, text in BLOCK.findall(PAGE.read_text()) if name == kind]


def test_the_printed_files_are_those_of_the_repository():
    assert blocks("python")[0] == (FOLDER / "rewards.py").read_text()
    assert blocks("yaml") == [(FOLDER / "reviews.yaml").read_text()]
    shown = blocks("json")[0].splitlines()
    assert shown == (FOLDER / "train.jsonl").read_text().splitlines()[: len(shown)]


def test_the_rewards_do_what_the_page_says():
    found: dict = {}
    for block in blocks("python"):
        exec(compile(block, PAGE.name, "exec"), found)
    settings = yaml.safe_load((FOLDER / "reviews.yaml").read_text())
    functions = reward_loading.load_reward_functions([str(FOLDER / "rewards.py")])
    weights = settings["grpo_config"]["reward_weights"]
    scored = rewards.RewardManager(functions, weights)(
        ["?"] * 3,
        ["negative", "It is negative.", "positive"],
        {"label": ["negative"] * 3, "finish_reasons": ["stop"] * 3},
    )
    assert scored.total.tolist() == [1.5, 1.0, 0.5]


def test_training_and_test_rows_are_of_one_kind_and_differ():
    train, test = (
        [json.loads(line) for line in (FOLDER / f"{name}.jsonl").open()]
        for name in ("train", "test")
    )
    assert (len(train), len(test)) == (24, 8)
    assert not {row["review"] for row in train} & {row["review"] for row in test}
    for rows in (train, test):
        assert [row["label"] for row in rows] == ["negative", "positive"] * (len(rows) // 2)


def test_the_settings_are_valid(monkeypatch):
    monkeypatch.chdir(source.ROOT)
    request = command.parse(
        ["tunix grpo", str(FOLDER / "reviews.yaml")], grpo_schema.GrpoRun, "", choose=None
    )
    assert request.run.rl_training_config.max_steps == 30


@pytest.mark.slow
def test_the_commands_run_one_after_the_other(tmp_path, tiny_model, monkeypatch, capsys):
    monkeypatch.chdir(source.ROOT)  # paths in the settings start there
    run, exported = str(tmp_path / "reviews"), str(tmp_path / "model")
    train, report, export, generate = (
        shlex.split(line.replace("runs/reviews", run).replace("reviews-model", exported))[1:]
        for block in blocks("sh")
        for line in block.splitlines()
        if line.startswith("tunix")
    )
    smaller = [
        f"model_config.model_id={tiny_model}",
        "batch_size=2",
        "grpo_config.num_generations=2",
        "rollout_config={total_generation_steps: 3, max_prompt_length: 256}",  # a byte is a token
        "rl_training_config.max_steps=2",
        "evaluation.samples_per_question=1",
    ]
    for line in ([*train, *smaller], report, export, [*generate, "--max-new-tokens", "3"]):
        assert main.main(line) == 0, capsys.readouterr().err
    assert "rewards    right_word, 0.5 x one_word" in capsys.readouterr().out
    rows = json_lines.read(tmp_path / "reviews" / "completions.jsonl")
    assert len(rows) == 2 * 2 * 2
    assert set(rows[0]["rewards"]) == {"right_word", "one_word"}
    assert (tmp_path / "reviews" / "report.html").is_file()
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "llama"
