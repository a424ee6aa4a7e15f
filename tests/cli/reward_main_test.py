"""``tunix reward``: from pairs to a reward model that scores the rollouts of ``tunix grpo``."""

import json
import shutil

import numpy as np
import pytest
import tokenizers
import torch
import transformers
import yaml

from tunix.cli import errors, export_main, grpo_main, main, reward_main
from tunix.cli.loading import trained_model
from tunix.cli.schemas import reward_schema, structure
from tunix.models.hf import hf_export
from tunix.rl.reward_fns import reward_model as reward_fn
from tunix.sft.dpo import reward_model_files
from tunix.utils import config

QUESTIONS = "acegikmoqsuw"
LORA = "model_config.lora_config={rank: 4, alpha: 8.0, dropout: 0.1}"


def message(role, content):
    return {"role": role, "content": content}


@pytest.fixture(scope="module")
def job(tmp_path_factory, tiny_model):
    """Return a function that trains a reward model and returns the run's directory."""
    folder = tmp_path_factory.mktemp("reward")
    rows = [
        {
            "prompt": [message("user", f"{q}?")],
            "chosen": [message("assistant", "yes")],
            "rejected": [message("assistant", "no")],
        }
        for q in QUESTIONS
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model_config": {"model_id": tiny_model, "precision": "exact"},
        "data_path": str(folder / "pairs.jsonl"),
        "batch_size": 4,
        "train_fraction": 0.67,
        "num_train_epochs": 4,
        "optimizer_config": {"learning_rate": 0.02},
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(settings))

    def run(*overrides, name):
        arguments = [str(folder / "base.yaml"), f"run_dir={folder / name}", *overrides]
        assert reward_main.main(["tunix reward", *arguments]) == 0
        return folder / name

    return run


def exported(run, form, target):
    assert export_main.main(["tunix export", str(run), str(target), "--format", form]) == 0
    return target


@pytest.fixture(scope="module")
def full_run(job):
    return job(name="full")


def test_held_out_pairs_are_told_apart(full_run):
    summary = json.loads((full_run / "summary.json").read_text())
    before, after = summary["eval_before"], summary["eval_after"]
    assert after["rewards/accuracies"] == 1.0
    assert after["loss"] < 0.5 * before["loss"]


@pytest.mark.slow
def test_its_scores_are_the_rewards_of_a_reinforcement_learning_run(full_run, tiny_model, tmp_path):
    judge, folder = exported(full_run, "hf", tmp_path / "judge"), tmp_path
    (folder / "prompts.jsonl").write_text(json.dumps({"prompt": "a?"}) + "\n")
    settings = {
        "model_config": {"model_id": tiny_model, "precision": "exact"},
        "reward_model_config": {"model_id": str(judge), "precision": "exact"},
        "data_path": str(folder / "prompts.jsonl"),
        "batch_size": 1,
        "grpo_config": {"num_generations": 2, "beta": 0.0},
        "rollout_config": {"total_generation_steps": 4, "max_prompt_length": 16},
        "rl_training_config": {"max_steps": 1},
        "run_dir": str(folder / "grpo"),
    }
    (folder / "grpo.yaml").write_text(yaml.safe_dump(settings))
    assert grpo_main.main(["tunix grpo", str(folder / "grpo.yaml")]) == 0
    lines = (folder / "grpo" / "completions.jsonl").read_text().splitlines()
    found = [json.loads(line)["rewards"]["reward_model"] for line in lines]
    assert len(set(found)) == 2
    row = json.loads((folder / "grpo" / "metrics.jsonl").read_text().splitlines()[0])
    assert row["train/reward"] == pytest.approx(np.mean(found), rel=1e-5)


@pytest.mark.parametrize(
    ("setting", "form"), [(None, "hf"), pytest.param(LORA, "merged", marks=pytest.mark.slow)]
)
def test_transformers_gives_an_exported_one_the_same_scores(
    setting, form, job, full_run, tmp_path, capsys
):
    run = full_run if setting is None else job(setting, name="lora")
    judge = exported(run, form, tmp_path / "judge")
    assert "AutoModelForSequenceClassification.from_pretrained" in capsys.readouterr().out
    assert "AutoModelForSequenceClassification" in (judge / "README.md").read_text()
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(judge)
    assert theirs.config.num_labels == 1
    tokens = np.array([5, 17, 9, 30, 1])
    want = theirs(torch.tensor(tokens[None])).logits.item()
    checkpoint = trained_model.find(run, None, None)
    with pytest.raises(config.ConfigError, match="trained a reward model, which scores"):
        trained_model.load(checkpoint)
    trained, _ = trained_model.load_reward_model(checkpoint)
    for model in (trained, reward_model_files.load_reward_model(judge, precision="exact")):
        (found,) = reward_fn.RewardModelScores(model)([tokens], [0])
        assert found == pytest.approx(want, abs=1e-5)
    with pytest.raises(hf_export.ExportError, match=r"use --format (hf|merged)"):
        exported(run, "peft", tmp_path / "adapters")


END, START = 1, 0  # <|im_end|> and <|im_start|>


def retold(base, tmp_path, tokenizer=None, special=(), **generation):
    """Return a copy of the base model with other settings of its tokenizer."""
    folder = shutil.copytree(base, tmp_path / "base")
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | (tokenizer or {})
    settings = {name: value for name, value in settings.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": END} | generation))
    raw = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw.add_special_tokens(list(special))
    raw.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({}, START, id="padding is the end of a text"),
        pytest.param({"tokenizer": {"pad_token": None}}, START, id="no padding"),
        pytest.param({"tokenizer": {"pad_token": "<|im_start|>"}}, START, id="its own"),
        pytest.param({"special": ["a"], "eos_token_id": [END, START]}, None, id="two ends"),
        pytest.param({"tokenizer": {"bos_token": "<|im_start|>"}}, START, id="only BOS is left"),
    ],
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_transformers_scores_a_padded_batch_as_we_do(
    changes, expected, side, full_run, tiny_model, tmp_path
):
    base, judge = retold(tiny_model, tmp_path, **changes), tmp_path / "judge"
    if expected is None:
        raw = tokenizers.Tokenizer.from_file(str(base / "tokenizer.json"))
        expected = raw.token_to_id("a")
    exporting = ["tunix export", str(full_run), str(judge), "--format", "hf", "--model", str(base)]
    assert export_main.main(exporting) == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(judge, padding_side=side)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(judge).eval()
    assert theirs.config.pad_token_id == tokenizer.pad_token_id == expected
    texts = [f"<|im_start|>user\n{x}<|im_end|>" for x in ("yes", "n", "qqqqqq?")]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    found = theirs(**batch).logits[:, 0].tolist()
    rows = [np.array(tokenizer(text)["input_ids"]) for text in texts]
    assert all(row[-1] == END for row in rows)
    trained, _ = trained_model.load_reward_model(trained_model.find(full_run, None, None))
    ours = reward_fn.RewardModelScores(trained)(rows, [0, 0, 0])
    np.testing.assert_allclose(found, ours, atol=1e-5)
    assert np.std(ours) > 1e-3


def test_a_tokenizer_whose_only_special_token_ends_texts_is_refused(full_run, tiny_model, tmp_path):
    base = retold(tiny_model, tmp_path, eos_token_id=[END, START])
    line = ["export", str(full_run), str(tmp_path / "judge"), "--format", "hf"]
    assert main.main([*line, "--model", str(base)]) == errors.USAGE_ERROR
    assert not (tmp_path / "judge").exists()


def test_a_reward_model_given_as_language_model_is_called_one(
    full_run, tiny_model, tmp_path, capsys
):
    judge = exported(full_run, "hf", tmp_path / "judge")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": "a"}) + "\n")
    model = f"model_config.model_id={judge}"
    for line in (
        ["sft", "base_config.yaml", model, f"data_path={rows}", f"run_dir={tmp_path / 'sft'}"],
        ["generate", str(judge), "--prompt", "a"],
    ):
        capsys.readouterr()
        assert main.main(line) == errors.USAGE_ERROR
        message = capsys.readouterr().err
        assert f"{judge}: is a reward model (score.weight in place of an output head)" in message
        assert "reward_model_config.model_id of tunix grpo or ppo" in message


def test_the_command_is_listed_and_its_settings_are_checked(capsys):
    overrides = ["model_config.model_id=x", "data_path=y", "--print-config"]
    assert main.main(["reward", "base_config.yaml", *overrides]) == 0
    assert "center_rewards_coefficient: null" in capsys.readouterr().out
    raw = {"model_config": {"model_id": "x"}, "data_path": "y"}
    with pytest.raises(config.ConfigError) as error:
        structure.structure(
            reward_schema.RewardRun,
            raw | {"reward_config": {"center_rewards_coefficient": -1.0}},
            notes={},
            source="x",
        )
    assert "center_rewards_coefficient must be positive" in str(error.value)
