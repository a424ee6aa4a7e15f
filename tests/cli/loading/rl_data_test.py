"""The data of a reinforcement learning run, as its settings ask for it."""

import json

import pytest
import yaml

from tunix.cli import command
from tunix.cli.loading import rl_data
from tunix.cli.schemas import grpo_schema
from tunix.data import errors, prompts
from tunix.rl import algorithm_config
from tunix.rl.scoring import rewards
from tunix.tokenizers import tokenizer_adapter

CURRICULUM = "curriculum: {}"


@pytest.fixture
def load(tmp_path, tiny_model):
    """Return a function from YAML to the data of a built-in task."""
    tokenizer = tokenizer_adapter.load_tokenizer(tiny_model)

    def loaded(text, longest=500):
        path = tmp_path / "run.yaml"
        head = "task: larger_number\nnum_train_epochs: 1\nmodel_config: {model_id: x}\n"
        path.write_text(head + f"rollout_config: {{max_prompt_length: {longest}}}\n" + text)
        request = command.parse(["tunix", str(path)], grpo_schema.GrpoRun, "")
        return rl_data.load(request.run, tokenizer)

    return loaded


@pytest.mark.parametrize("text", ["", CURRICULUM])
def test_training_gets_every_batch_from_the_first_one_on(load, text):
    data = load(text)
    batches = list(data.train_ds)
    assert len(batches) == len(data.train_ds)
    first = batches[0][prompts.PROMPTS]
    assert first == next(iter(load(text).train_ds))[prompts.PROMPTS]


def test_a_curriculum_stands_at_its_first_draw(load):
    assert load(CURRICULUM).train_ds.get_state()["draws"] == 0


def test_training_and_held_out_prompts_have_names_of_their_own(load):
    names = [account.source for account in load("").reports]
    assert names == ["task larger_number", "task larger_number (held out)"]


def test_prompts_to_train_and_to_evaluate_on_are_all_read_before_anything_is_said(load):
    with pytest.raises(errors.DataError) as caught:
        load("", longest=1)
    assert caught.value.subject == "task larger_number, task larger_number (held out)"


NEEDS = "def exact(prompts, completions, solution): return [1.0] * len(completions)\n"


@pytest.fixture
def load_files(tmp_path, tiny_model):
    """Return a function from rows and a reward file to the data of a run with these files."""
    tokenizer = tokenizer_adapter.load_tokenizer(tiny_model)

    def loaded(train, held_out, reward_file):
        for name, rows in (("train", train), ("eval", held_out)):
            (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (tmp_path / "rewards.py").write_text(reward_file)
        settings = {
            "model_config": {"model_id": "x"},
            "data_path": str(tmp_path / "train.jsonl"),
            "eval_data_path": str(tmp_path / "eval.jsonl"),
            "reward_functions": [str(tmp_path / "rewards.py")],
            "rollout_config": {"total_generation_steps": 4},
            "num_train_epochs": 1,
            "batch_size": 1,
        }
        path = tmp_path / "files.yaml"
        path.write_text(yaml.safe_dump(settings))
        request = command.parse(["tunix", str(path)], grpo_schema.GrpoRun, "")
        return rl_data.load(request.run, tokenizer)

    return loaded


PLAIN, SOLVED = {"prompt": "a"}, {"prompt": "a", "solution": "b"}


@pytest.mark.parametrize(
    ("train", "held_out", "where"),
    [
        pytest.param(PLAIN, SOLVED, ["train.jsonl"], id="training"),
        pytest.param(SOLVED, PLAIN, ["eval.jsonl (held out)"], id="held out"),
        pytest.param(PLAIN, PLAIN, ["train.jsonl", "eval.jsonl (held out)"], id="both"),
    ],
)
def test_a_column_that_a_reward_needs_is_missed_before_anything_runs(
    load_files, train, held_out, where
):
    with pytest.raises(errors.DataError) as caught:
        load_files([train], [held_out], NEEDS)
    assert len(caught.value.problems) == len(where)
    for problem, name in zip(caught.value.problems, where, strict=True):
        assert f"{name}: exact needs the column 'solution'; there are" in problem


def test_a_missing_column_is_told_with_what_else_is_wrong_with_the_data(load_files):
    with pytest.raises(errors.DataError) as caught:
        load_files([PLAIN], [{"prompt": ""}], NEEDS)
    text = str(caught.value)
    assert "exact needs the column 'solution'" in text and "column 'prompt' is empty" in text


def test_columns_that_are_there_or_have_a_default_are_not_missed(load_files):
    assert load_files([SOLVED], [SOLVED], NEEDS).reward_fns
    without = "def loose(prompts, completions, solution=None, finish_reasons=()): return [1.0]\n"
    assert load_files([PLAIN], [PLAIN], without).reward_fns


def test_a_reward_manager_of_ones_own_says_itself_what_it_needs(load_files, monkeypatch):
    class Own(rewards.RewardManager):
        def check_columns(self, columns):
            pass

    monkeypatch.setattr(algorithm_config.AlgorithmConfig, "reward_manager_class", Own)
    assert load_files([PLAIN], [PLAIN], NEEDS).reward_fns
