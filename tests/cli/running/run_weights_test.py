"""The last, the best and the averaged weights of a run, sampled and exported."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
import yaml
from flax import nnx

from tests.cli import export_main_test
from tunix.cli import errors, generate_main, main, sft_main
from tunix.cli.loading import trained_model
from tunix.sft import peft_trainer
from tunix.sft.loop import ema
from tunix.utils import json_lines

LORA = "model_config.lora_config={rank: 2, alpha: 4.0}"


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory):
    """Return a run whose best checkpoint is not its last, and the average that it ended with."""
    folder = tmp_path_factory.mktemp("runs")
    message = export_main_test.MESSAGES[0]
    rows = [{"messages": [message, {"role": "assistant", "content": "b."}]}] * 12
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model_config": {"model_id": tiny_model, "precision": "exact"},
        "data_path": str(folder / "chat.jsonl"),
        "batch_size": 2,
        "train_fraction": 0.5,
        "max_target_length": 64,
        "optimizer_config": {"learning_rate": 0.05},
        "training_config": {
            "eval_every_n_steps": 1,
            "ema_decay": 0.5,
            # The loss falls, so that the first one is the largest.
            "keep_best": {"mode": "max", "restore_best": True},
            "checkpointing_options": {"save_interval_steps": 1},
        },
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(settings))

    def train(name, *overrides):
        arguments = [str(folder / "base.yaml"), f"run_dir={folder / name}", *overrides]
        with pytest.MonkeyPatch.context() as patch:
            averages = []
            averaged = ema.averaged

            def spy(trainer: peft_trainer.PeftTrainer):
                averages.append(jax.tree.map(np.array, trainer.state.opt_state.average))
                return averaged(trainer)

            patch.setattr(ema, "averaged", spy)
            assert sft_main.main(["tunix sft", *arguments]) == 0
        return folder / name, averages

    return train


@pytest.fixture(scope="module")
def full_run(run):
    return run("full")


def parameters(directory, weights, kind=nnx.Param):
    checkpoint = trained_model.find(directory, None, None, weights)
    state = nnx.state(trained_model.load(checkpoint)[0], kind)
    leaves = {".".join(map(str, p)): np.asarray(x.get_value()) for p, x in nnx.to_flat_state(state)}
    return checkpoint.step, leaves


def test_each_kind_of_weights_is_its_own(full_run):
    directory, (average,) = full_run
    (last_step, last), (best_step, best), (ema_step, mean) = (
        parameters(directory, weights) for weights in ("last", "best", "ema")
    )
    assert (last_step, best_step, ema_step) == (3, 1, 3)
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["best_step"] == 1
    rows = json_lines.read(directory / "metrics.jsonl")
    (first,) = [row["eval/loss"] for row in rows if row["step"] == 1 and "eval/loss" in row]
    assert summary["eval_of_best"]["loss"] == pytest.approx(first, rel=1e-6)
    assert summary["eval_of_best"]["loss"] > summary["eval_after"]["loss"] + 1e-3
    assert mean.keys() == last.keys() == average.keys()
    for name, value in mean.items():
        np.testing.assert_array_equal(value, average[name])
    changed = "layers.self_attn.q_proj.w"
    assert np.abs(mean[changed] - last[changed]).max() > 1e-3
    assert np.abs(best[changed] - last[changed]).max() > 1e-3


def test_the_average_is_exported(full_run, tmp_path, capsys):
    directory, (average,) = full_run
    out = tmp_path / "out"
    assert export_main_test.export(directory, out, "--format", "hf", "--weights", "ema") == 0
    assert "the average after step 3" in capsys.readouterr().out
    assert "the average after step 3 of the run full" in (out / "README.md").read_text()
    written = safetensors.numpy.load_file(out / "model.safetensors")
    np.testing.assert_array_equal(written["model.norm.weight"], average["norm.scale"])


@pytest.mark.slow
def test_adapters_have_an_average_too(run):
    directory, (average,) = run("lora", LORA)
    _, found = parameters(directory, "ema", nnx.LoRAParam)
    assert found.keys() == average.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, average[name])


def sampled(capsys, *arguments):
    line = (*map(str, arguments), "--prompt", "a?", "--max-new-tokens", "2", "--json")
    assert generate_main.main(["tunix generate", *line]) == 0
    return json.loads(capsys.readouterr().out)["logps"]


def test_a_run_is_sampled_from_as_it_was_exported(full_run, tmp_path, capsys):
    directory, _ = full_run
    found = {
        weights: sampled(capsys, directory, "--weights", weights) for weights in ("best", "ema")
    }
    assert found["best"] != found["ema"]
    arguments = (tmp_path / "out", "--format", "hf", "--weights", "ema")
    assert export_main_test.export(directory, *arguments) == 0
    capsys.readouterr()
    exported = sampled(capsys, tmp_path / "out", "--precision", "exact")
    np.testing.assert_allclose(exported, found["ema"], rtol=1e-6)


def failure(capsys, *arguments):
    assert main.main([*map(str, arguments)]) == errors.USAGE_ERROR
    return capsys.readouterr().err


def test_weights_that_a_run_does_not_keep(full_run, tmp_path, tiny_model, capsys):
    directory, _ = full_run
    raw = yaml.safe_load((directory / "config.yaml").read_text())
    raw["training_config"]["ema_decay"] = None
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    out = tmp_path / "out"
    text = failure(capsys, "export", tmp_path, out, "--format", "hf", "--weights", "ema")
    assert "training_config.ema_decay is not set" in text
    assert "there are ['last', 'best']" in text
    text = failure(
        capsys, "export", directory, out, "--format", "hf", "--weights", "best", "--step", 3
    )
    assert "--weights best is step 1, and step 3 is named, too" in text
    text = failure(capsys, "generate", tiny_model, "--weights", "ema", "--prompt", "x")
    assert "choose from a run" in text
    text = failure(capsys, "generate", directory, "--dtype", "bfloat16", "--prompt", "x")
    assert "are those of the run" in text
