import json
import re
import shutil

import numpy as np
import pytest
import safetensors.numpy
import tokenizers
import yaml

from tests import tiny_llama
from tunix.cli import errors, grpo_main, report_main
from tunix.perf import machine
from tunix.utils import config, json_lines

REWARDS = '''
"""Likes replies of plain ASCII; a reply of random bytes is about half of it."""

def share(text):
    return sum(character.isascii() for character in text) / max(len(text), 1)

def likes_ascii(prompts, completions, **columns):
    return [share(text) for text in completions]
'''


def write_job(folder, model, **settings):
    """Return the path of the settings of a small job whose files lie in ``folder``."""
    (folder / "rewards.py").write_text(REWARDS)
    for name, words in (("train", "pqrstuvw"), ("eval", "xyz")):
        rows = [json.dumps({"prompt": f"Say {word}", "answer": word}) for word in words]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    common = {
        "model_config": {"model_id": model, "precision": "exact"},
        "data_path": str(folder / "train.jsonl"),
        "eval_data_path": str(folder / "eval.jsonl"),
        "reward_functions": [str(folder / "rewards.py")],
        "rollout_config": {
            "total_generation_steps": 6,
            "max_prompt_length": 16,
            "temperature": 1.0,
        },
        "evaluation": {"samples_per_question": 2, "num_shown": 2},
    }
    path = folder / "base.yaml"
    path.write_text(yaml.safe_dump(common | settings))
    return path


@pytest.fixture
def base(tmp_path, tiny_model):
    """Return the path of a small job's settings."""
    return write_job(
        tmp_path,
        tiny_model,
        batch_size=2,
        num_train_epochs=2,
        grpo_config={"num_generations": 4, "beta": 0.0},
        rl_training_config={"actor_optimizer_config": {"learning_rate": 0.02}},
    )


def run(base, *overrides, name="run"):
    directory = base.parent / name
    assert grpo_main.main(["tunix grpo", str(base), f"run_dir={directory}", *overrides]) == 0
    return directory


def metrics(directory, name="train/reward"):
    rows = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [row[name] for row in rows if name in row]


def test_a_run_learns_and_leaves_its_whole_story_in_its_directory(base, capsys):
    directory = run(base, "num_train_epochs=4")
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["steps"] == 16
    assert summary["accuracy_function"] == "likes_ascii"
    assert summary["reward_after"] > summary["reward_before"] + 0.05
    assert set(summary) >= {
        "greedy_accuracy_before",
        "greedy_accuracy_after",
        "seconds",
        "tokens_per_second",
    }
    completions = [
        json.loads(line) for line in (directory / "completions.jsonl").read_text().splitlines()
    ]
    assert len(completions) == 16 * 2 * 4
    assert set(completions[0]["rewards"]) == {"likes_ascii"}
    assert (directory / "reward.png").read_bytes().startswith(b"\x89PNG")
    assert list((directory / "tensorboard").iterdir())
    shown = capsys.readouterr().out
    assert "accuracy   share of held-out replies with at least 1 from likes_ascii" in shown
    for expected in ("parameters", "sampled reward", "greedy replies", "Say x", str(directory)):
        assert expected in shown.replace("\n", "")


def test_what_a_stopped_run_says_continues_it(base, capsys, monkeypatch):
    with (base.parent / "rewards.py").open("a") as file:
        file.write(
            "import os, pathlib, signal\n"
            "def stops(completions):\n"
            "    once = pathlib.Path(__file__).with_name('once')\n"
            "    if not once.exists():\n"
            "        once.touch()\n"
            "        os.kill(os.getpid(), signal.SIGTERM)\n"
            "    return [0.0] * len(completions)\n"
        )
    monkeypatch.chdir(base.parent)
    line = ["tunix grpo", str(base), "eval_data_path=null", "rl_training_config.max_steps=2"]
    assert errors.run(grpo_main.main, line) == 143
    said = capsys.readouterr().err.splitlines()[-1]
    found = re.search(r"with (run_dir=runs/grpo-\S+) to continue", said)
    assert found is not None, said
    assert errors.run(grpo_main.main, [*line, found[1]]) == 0
    assert "continuing from step 1" in capsys.readouterr().out
    assert len(list((base.parent / "runs").iterdir())) == 1


def test_data_that_is_missing_leaves_no_directory(base, capsys):
    directory = base.parent / "leftover"
    text = message_of(capsys, base, "data_path=nope.jsonl", f"run_dir={directory}")
    assert "nope.jsonl" in text
    assert not directory.exists()


@pytest.mark.slow
def test_a_run_that_is_started_again_continues_and_remembers_where_it_began(base):
    whole = run(base, "rl_training_config.max_steps=6", name="whole")
    part = run(base, "rl_training_config.max_steps=3", name="part")
    run(base, "rl_training_config.max_steps=6", name="part")
    assert metrics(part) == metrics(whole)
    summaries = [json.loads((d / "summary.json").read_text()) for d in (whole, part)]
    for key in ("reward_before", "reward_after", "greedy_accuracy_after", "steps"):
        assert summaries[0][key] == summaries[1][key], key


@pytest.mark.slow
def test_accuracy_is_about_the_function_that_is_chosen_and_compared_with_nothing_else(base, capsys):
    with (base.parent / "rewards.py").open("a") as file:
        file.write("def dots(completions): return [1.0] * len(completions)\n")
    directory = run(base, "rl_training_config.max_steps=1", "evaluation.accuracy_function=dots")
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["accuracy_function"] == "dots" and summary["greedy_accuracy_after"] == 1.0
    assert "greedy accuracy: dots at least 1 (3 questions)" in capsys.readouterr().out
    run(base, "rl_training_config.max_steps=2")
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["accuracy_function"] == "likes_ascii" and summary["reward_before"] is None
    assert "is about another accuracy_function: no comparison" in capsys.readouterr().out
    text = message_of(capsys, base, "evaluation.accuracy_function=likes")
    assert "is not one of ['likes_ascii', 'dots'] (did you mean 'likes_ascii'?)" in text


@pytest.mark.slow
def test_a_penalty_keeps_a_copy_of_the_model_as_reference(base):
    directory = run(base, "grpo_config.beta=0.1", "rl_training_config.max_steps=2")
    kl = metrics(directory, "train/kl")
    assert kl[0] == pytest.approx(0.0, abs=1e-6)
    assert kl[1] > 0.0


@pytest.mark.slow
def test_adapters_learn_too(base):
    directory = run(
        base,
        "model_config.lora_config={rank: 4, alpha: 8.0}",
        "grpo_config.beta=0.01",
        "rl_training_config.actor_optimizer_config.learning_rate=0.1",
    )
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["reward_after"] > summary["reward_before"]


@pytest.mark.slow
def test_a_built_in_task_brings_questions_and_rewards(tmp_path, tiny_model):
    settings = {
        "model_config": {"model_id": tiny_model},
        "task": "multiplication",
        "batch_size": 2,
        "rollout_config": {"total_generation_steps": 3},
        "grpo_config": {"beta": 0.0},
        "rl_training_config": {"max_steps": 1},
        "evaluation": {"num_questions": 4, "samples_per_question": 1, "num_shown": 0},
    }
    base = tmp_path / "base.yaml"
    base.write_text(yaml.safe_dump(settings))
    summary = json.loads((run(base) / "summary.json").read_text())
    assert summary["num_questions"] >= 4
    assert summary["reward_before"] == 0.0


def problems_of(base, *overrides):
    with pytest.raises(config.ConfigError) as caught:
        run(base, *overrides)
    return list(caught.value.problems)


def test_what_does_not_go_together_is_said_at_once(base):
    assert problems_of(base, "task=multiplicatoin", "num_train_epochs=null", "prompt_column=q") == [
        "nothing ends the run: set rl_training_config.max_steps or num_train_epochs",
        "set either task or data_path: where the questions come from",
        "task 'multiplicatoin' is not one of ['first_letter', 'json_object', 'larger_number', "
        "'multiplication'] (did you mean 'multiplication'?)",
        "eval_data_path is not read: the task 'multiplicatoin' brings its own questions",
        "prompt_column is not read: the task 'multiplicatoin' brings its own questions",
        "reward_functions are not read: the task 'multiplicatoin' brings its own reward; files "
        "that register functions belong in python_files",
    ]


def test_keys_of_the_reference_that_are_not_here_are_answered(base):
    found = problems_of(base, "verl_compatible=true", "reference_model_config.model_id=x")
    assert sorted(found) == [
        "reference_model_config: known key of google-tunix, not supported here: one model_config "
        "serves every role; write it there",
        "verl_compatible: known key of google-tunix, not supported here: there is nothing of the "
        "kind; remove it",
    ]
    assert problems_of(base, "rollout_engine=vllm") == [
        "rollout_engine 'vllm' is not one of ['mock', 'vanilla'] (register a function of your own "
        "as 'rollout_engine' first)"
    ]


def message_of(capsys, base, *overrides):
    arguments = ["tunix grpo", str(base), f"run_dir={base.parent / 'run'}", *overrides]
    assert errors.run(grpo_main.main, arguments) == errors.USAGE_ERROR
    return capsys.readouterr().err


def test_a_reward_function_that_fails_is_named_with_its_sample(base, capsys):
    (base.parent / "rewards.py").write_text(
        "def broken(prompts, completions, answer, **columns):\n"
        "    return [float('nan') if a == 'x' else 1.0 for a in answer]\n"
    )
    text = message_of(capsys, base)
    assert "broken returned nan where a finite number is expected, at sample" in text
    assert "Say x" in text


def test_a_prompt_that_is_too_long_is_named_by_file_and_line(base, capsys):
    text = message_of(capsys, base, "rollout_config.max_prompt_length=3")
    assert "train.jsonl:1" in text
    assert "max_prompt_length is 3" in text


def test_a_batch_larger_than_the_data_is_an_error(base, capsys):
    expected = "8 rows are no batch of batch_size 9; give more, or a smaller batch_size"
    assert expected in message_of(capsys, base, "batch_size=9")


@pytest.mark.slow
def test_a_curriculum_continues_with_the_solve_rates_it_had(base):
    settings = ("curriculum.solved_at=0.5", "rl_training_config.alarms.window=2")
    whole = run(base, *settings, "rl_training_config.max_steps=4", name="whole")
    part = run(base, *settings, "rl_training_config.max_steps=2", name="part")
    run(base, *settings, "rl_training_config.max_steps=4", name="part")
    stories = [json_lines.read(d / "completions.jsonl") for d in (whole, part)]
    assert stories[0] == stories[1]
    assert all(isinstance(row["prompt_key"], int) for row in stories[0])
    assert metrics(part, "train/curriculum_seen") == metrics(whole, "train/curriculum_seen")
    assert report_main.make_page(whole, max_rows=10).count("<svg") > 5


def reward_model_of(tiny_model, folder):
    """Write a reward model with the backbone and the tokenizer of the tiny model."""
    shutil.copytree(tiny_model, folder)
    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    score = np.random.default_rng(1).normal(size=(1, tiny_llama.WIDTH)).astype(np.float32)
    safetensors.numpy.save_file(weights | {"score.weight": score}, folder / "model.safetensors")
    return folder


@pytest.mark.slow
def test_a_reward_model_from_a_directory_scores_beside_the_functions(base, tiny_model):
    folder = reward_model_of(tiny_model, base.parent / "judge")
    directory = run(
        base,
        f"reward_model_config={{model_id: {folder}, precision: exact}}",
        "grpo_config.reward_weights=[0.0, 1.0]",
        "num_train_epochs=3",
    )
    assert metrics(directory) == metrics(directory, "train/reward/reward_model")
    assert {"train/reward_std/reward_model", "train/reward_seconds/reward_model"} <= set(
        json_lines.read(directory / "metrics.jsonl")[0]
    )
    scores = [row["rewards"] for row in json_lines.read(directory / "completions.jsonl")]
    assert all(set(row) == {"likes_ascii", "reward_model"} for row in scores)
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["reward_after"] > summary["reward_before"]


def test_a_reward_model_with_other_tokens_is_refused(base, tiny_model, capsys):
    folder = reward_model_of(tiny_model, base.parent / "judge")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["larger"])
    tokenizer.save(str(folder / "tokenizer.json"))
    text = message_of(capsys, base, f"reward_model_config.model_id={folder}")
    assert "reward_model_config" in text and "is not the policy's" in text


def test_a_reward_model_may_be_the_only_reward(base):
    found = problems_of(base, "reward_functions=[]", "seed=-1")
    assert len(found) == 2 and "or a reward_model_config" in found[1]
    found = problems_of(base, "reward_functions=[]", "reward_model_config.model_id=x", "seed=-1")
    assert found == ["seed must not be negative, got -1"]


def test_a_policy_that_diverges_fails(base):
    settings = "rl_training_config.actor_optimizer_config={learning_rate: 1e38, opt_type: sgd}"
    with pytest.raises(ValueError, match="loss or gradient was not finite in 7 of 8 steps"):
        run(base, settings)


def test_the_first_lines_say_what_memory_it_takes_and_what_helps(base, capsys, monkeypatch):
    monkeypatch.setattr(machine, "host_bytes_available", lambda: 200_000)
    run(base, "rl_training_config.max_steps=1")
    lines = capsys.readouterr().out.splitlines()
    (memory,) = (line for line in lines if line.startswith("memory "))
    assert memory.startswith("memory     about 0.0")
    (warning,) = (line for line in lines if line.startswith("warning "))
    assert "there are 0.00 GB free; consider" in warning
    assert "train_micro_batch_size" in warning and "gradient_accumulation_steps" not in warning
