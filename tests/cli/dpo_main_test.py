"""``tunix dpo`` from the command line to the summary."""

import dataclasses
import json

import pytest
import yaml

from tunix.cli import dpo_main
from tunix.cli.schemas import dpo_schema, structure
from tunix.sft.dpo import cpo_trainer, dpo_config, kto_trainer, simpo_trainer
from tunix.utils import config

QUESTIONS = "acegikmo"
LEARNED = ("train/loss", "train/grad_norm", "train/rewards", "eval/loss", "eval/rewards")


def message(role, content):
    return {"role": role, "content": content}


def pairs():
    return [
        {
            "prompt": [message("user", f"{q}?")],
            "chosen": [message("assistant", f"{q}!")],
            "rejected": [message("assistant", "z")],
        }
        for q in QUESTIONS
    ]


def ratings():
    return [
        {"prompt": f"{q}?", "completion": f"{q}!" if i % 2 else "z", "label": bool(i % 2)}
        for i, q in enumerate(QUESTIONS)
    ]


@pytest.fixture
def job(tmp_path, tiny_model):
    """Return a function that runs a small job and returns its directory."""

    def run(*overrides, name="run", rows=None):
        data = tmp_path / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows or pairs()))
        settings = {
            "model_config": {"model_id": tiny_model, "precision": "exact"},
            "data_path": str(data),
            "batch_size": 2,
            "train_fraction": 0.5,
            "num_train_epochs": 3,
            "optimizer_config": {"learning_rate": 0.01},
            "training_config": {"eval_every_n_steps": 3},
        }
        base = tmp_path / "base.yaml"
        base.write_text(yaml.safe_dump(settings))
        directory = tmp_path / name
        assert dpo_main.main(["tunix dpo", str(base), f"run_dir={directory}", *overrides]) == 0
        return directory

    return run


def summary(directory):
    return json.loads((directory / "summary.json").read_text())


def test_a_run_learns_to_prefer_and_keeps_its_reference(job, capsys):
    directory = job()
    found = summary(directory)
    assert found["eval_before"]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert found["eval_after"]["loss"] < found["eval_before"]["loss"] - 0.01
    assert found["eval_after"]["rewards/accuracies"] == 1.0
    out = capsys.readouterr().out
    assert "4 rows" in out
    assert "held-out rewards/accuracies  0.0000 -> 1.0000" in out
    references = directory / "reference_train.npz", directory / "reference_eval.npz"
    assert all(path.exists() for path in references)


@pytest.mark.slow
def test_a_run_continues_with_the_reference_of_its_start(job):
    whole = job("training_config.metrics_logging_options.flush_every_n_steps=1", name="whole")
    job("training_config.max_steps=2", name="halves")
    directory = job(name="halves")
    logs = [
        [
            {k: v for k, v in json.loads(line).items() if k.startswith(("step", *LEARNED))}
            for line in (path / "metrics.jsonl").read_text().splitlines()
        ]
        for path in (whole, directory)
    ]
    assert logs[0] == logs[1]
    assert len(logs[0]) == 6


@pytest.mark.parametrize(
    ("setting", "rows"),
    [
        ("kto_config.beta=0.2", ratings),
        ("simpo_config.simpo_gamma=0.5", pairs),
    ],
)
def test_other_objectives_run(job, setting, rows):
    directory = job(setting, "num_train_epochs=1", "training_config.max_steps=1", rows=rows())
    assert summary(directory)["steps"] == 1
    has_reference = (directory / "reference_train.npz").exists()
    assert has_reference is setting.startswith("kto")


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["kto_config.beta=0.1", "dpo_config.beta=0.1"])
def test_a_reference_may_be_asked_before_training_or_live_or_wait_on_the_host(job, setting):
    rows = ratings() if "kto" in setting else pairs()
    found = []
    for reference in ("precomputed", "live", "offloaded"):
        directory = job(setting, f"reference={reference}", name=reference, rows=rows)
        assert (directory / "reference_train.npz").exists() is (reference == "precomputed")
        found.append(summary(directory)["eval_after"])
    before, live, offloaded = found
    assert offloaded == live
    assert before == pytest.approx(live, abs=1e-4)


@pytest.mark.slow
def test_adapters_need_no_second_model_as_live_reference(job):
    directory = job(
        "reference=live", "model_config.lora_config={rank: 2, alpha: 4.0, dropout: 0.2}"
    )
    assert summary(directory)["eval_before"]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert summary(directory)["eval_after"]["loss"] < 0.69


def problems_of(**settings):
    raw = {"model_config": {"model_id": "x"}, "data_path": "y", **settings}
    with pytest.raises(config.ConfigError) as error:
        structure.structure(dpo_schema.DpoRun, raw, notes={}, source="x")
    return " | ".join(error.value.problems)


def test_settings_are_checked_before_anything_is_loaded():
    assert "different objectives; keep one" in problems_of(
        dpo_config={"beta": 0.1}, kto_config={"beta": 0.1}
    )
    assert "did you mean 'sigmoid'" in problems_of(dpo_config={"loss_type": "sigmod"})
    assert "orpo compares with none" in problems_of(
        orpo_config={"lambda_orpo": 0.1}, reference="live"
    )
    assert "reference: offloaded moves a second copy" in problems_of(
        reference="offloaded",
        model_config={"model_id": "x", "lora_config": {"rank": 2, "alpha": 2.0}},
    )
    assert "unknown key 'orpo_config.beta'" in problems_of(orpo_config={"beta": 0.1})
    assert "row_length is the length of packed rows" in problems_of(data_config={"row_length": 64})


@pytest.mark.parametrize("name", ["dpo", "orpo", "simpo", "cpo", "kto"])
def test_every_objective_has_a_trainer(name):
    values = {"beta": 0.2} if name != "orpo" else {"lambda_orpo": 0.2}
    raw = {"model_config": {"model_id": "x"}, "data_path": "y", f"{name}_config": values}
    run = structure.structure(dpo_schema.DpoRun, raw, notes={}, source="x")
    assert run.objective_name == name
    trained = run.objective(eval_every_n_steps=1)
    assert values.items() <= vars(trained).items()


OTHER_VALUES = {
    "loss_type": ("sigmoid", "hinge"),
    "loss_weights": (0.7, 0.3),
    "label_smoothing": 0.1,
}


@pytest.mark.parametrize(
    ("name", "option"),
    [
        (name, field.name)
        for name, cls in (
            ("dpo", dpo_config.DPOConfig),
            ("orpo", dpo_config.ORPOConfig),
            ("simpo", simpo_trainer.SimPOConfig),
            ("cpo", cpo_trainer.CPOConfig),
            ("kto", kto_trainer.KTOConfig),
        )
        for field in dataclasses.fields(cls)
    ],
)
def test_every_setting_of_an_objective_reaches_its_trainer(name, option):
    run = structure.structure(
        dpo_schema.DpoRun,
        {"model_config": {"model_id": "x"}, "data_path": "y", f"{name}_config": {}},
        notes={}, source="x",
    )  # fmt: skip
    options = getattr(run, f"{name}_config")
    default = getattr(options, option)
    other = OTHER_VALUES.get(option, 0.25 if default is None else None)
    if other is None:
        other = not default if isinstance(default, bool) else type(default)(default + 1)
    # What no loss reads is refused, so some need a loss of their own.
    losses = {"loss_weights": OTHER_VALUES["loss_type"], "discopop_tau": "discopop"}
    changes = {option: other}
    if option in losses:
        changes["loss_type"] = losses[option]
    changed = dataclasses.replace(
        run, **{f"{name}_config": dataclasses.replace(options, **changes)}
    )
    found = vars(changed.objective(eval_every_n_steps=1))[option]
    assert found != default
    assert found == other
