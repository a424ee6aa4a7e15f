"""``tunix sft`` with evaluation by generation, from the settings to the files."""

import json

import pytest
import yaml

from tunix.cli import errors, sft_main
from tunix.cli.schemas import sft_schema, structure
from tunix.utils import config

SCORES = """
def right_kind(prompts, completions, reference, kind):
    assert set(kind) == {"letter"} and len(reference[0]) == 1
    return [float(len(text) == 1) for text in completions]

def brevity(prompt, completion):
    return -len(completion)
"""


@pytest.fixture
def job(tmp_path, tiny_model):
    """Return a function that runs a small job and returns its directory."""
    rows = [
        {
            "messages": [{"role": "user", "content": q}, {"role": "assistant", "content": "z"}],
            "kind": "letter",
        }
        for q in "abcdefgh"
    ]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "scores.py").write_text(SCORES)
    settings = {
        "model_config": {"model_id": tiny_model, "precision": "exact"},
        "data_path": str(tmp_path / "chat.jsonl"),
        "batch_size": 2,
        "max_target_length": 64,
        "train_fraction": 0.5,
        "num_train_epochs": 8,
        "optimizer_config": {"learning_rate": 0.1},
        "loss_config": {"neftune_alpha": 0.5},
        "data_config": {"packing": True},
        "training_config": {
            "eval_every_n_steps": 4,
            "checkpointing_options": {"save_interval_steps": 4},
            "metrics_logging_options": {"flush_every_n_steps": 1},
        },
        "evaluation": {
            "generation": {
                "num_prompts": 3,
                "max_new_tokens": 4,
                "scores": ["exact_match", "chrf"],
                "score_functions": [str(tmp_path / "scores.py")],
            }
        },
    }
    base = tmp_path / "base.yaml"
    base.write_text(yaml.safe_dump(settings))

    def run(*overrides, name="run"):
        directory = tmp_path / name
        arguments = ["tunix sft", str(base), f"run_dir={directory}", *overrides]
        assert errors.run(sft_main.main, arguments) == 0
        return directory

    return run


def log(directory, *without):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    drop = ("time", "system", *without)
    return [
        {k: v for k, v in json.loads(line).items() if not any(part in k for part in drop)}
        for line in lines
    ]


def files(directory):
    return {path.name: path.read_text() for path in (directory / "generations").glob("*.jsonl")}


def test_replies_are_scored_shown_and_kept_and_a_run_that_continues_is_the_same(job, capsys):
    whole = job(name="whole")
    out = capsys.readouterr().out
    assert "data       prompts to reply to: 3 rows" in out
    summary = json.loads((whole / "summary.json").read_text())
    before, after = summary["eval_before"], summary["eval_after"]
    assert before["generation/chrf"] == 0.0
    assert after["generation/chrf"] > 0.5, "z is what every reply begins with"
    assert f"held-out generation/chrf  0.0000 -> {after['generation/chrf']:.4f}" in out
    assert after["generation/brevity"] < 0.0
    kept = files(whole)
    assert sorted(kept) == ["000000.jsonl", "000004.jsonl", "000008.jsonl"]
    last = [json.loads(line) for line in kept["000008.jsonl"].splitlines()]
    assert [set(row["completion"]) for row in last] == [{"z"}] * 3
    assert last[0]["prompt"].endswith("e<|im_end|>\n<|im_start|>assistant\n")

    job("training_config.max_steps=5", name="part")
    part = job(name="part")
    assert log(part) == log(whole)
    assert files(part).items() >= kept.items()
    plain = job("evaluation.generation=null", name="plain")
    assert log(plain) == log(whole, "generation")
    assert not (plain / "generations").exists()


def problems_of(generation, **settings):
    raw = {"model_config": {"model_id": "x"}, "data_path": "y", **settings}
    raw["evaluation"] = {"generation": generation}
    with pytest.raises(config.ConfigError) as error:
        structure.structure(sft_schema.SftRun, raw, notes={}, source="x")
    return " | ".join(error.value.problems)


def test_settings_are_checked_before_anything_is_loaded():
    assert "asks held-out rows: set eval_data_path" in problems_of({})
    found = problems_of({"scores": ["exact_mach"], "num_prompts": 0}, train_fraction=0.5)
    assert "num_prompts must be at least 1" in found
    assert "did you mean 'exact_match'" in found
    assert "nothing is scored" in problems_of({"scores": []}, train_fraction=0.5)
    assert "data_config.format is text" in problems_of(
        {}, train_fraction=0.5, data_config={"format": "text"}
    )
    stopping = {"early_stopping": {"metric": "generation/chrf", "patience": 1, "mode": "max"}}
    assert "goes by generation/chrf, which nothing measures" in problems_of(
        None, train_fraction=0.5, training_config=stopping
    )


def test_a_column_that_a_score_needs_and_the_data_has_not_is_found_before_training(
    job, tmp_path, capsys
):
    (tmp_path / "scores.py").write_text("def score(prompts, completions, knid):\n    return []\n")
    with pytest.raises(AssertionError):
        job()
    text = capsys.readouterr().err
    assert "evaluation.generation.score_functions" in text
    assert "score needs the column 'knid'" in text
    assert "did you mean 'kind'" in text
