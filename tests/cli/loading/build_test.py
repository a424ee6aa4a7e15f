"""Settings become the objects they describe."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import tiny_llama
from tests.models import gguf_writer, hf_llama
from tunix.cli import errors, main
from tunix.cli.loading import build
from tunix.cli.schemas import schema
from tunix.models import automodel
from tunix.sft import checkpoint_manager
from tunix.utils import config as config_lib


def saved_steps(options, directory, seconds_per_step, monkeypatch):
    """Steps of a run of ten that are saved, under a clock of our own."""
    import datetime

    now = datetime.datetime.now(datetime.UTC)

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return now

    monkeypatch.setattr(datetime, "datetime", Clock)
    manager = checkpoint_manager.CheckpointManager(directory, build.checkpointing_options(options))
    saved = []
    for step in range(1, 11):
        now += datetime.timedelta(seconds=seconds_per_step)
        if manager.save_state(step, {"params": {"w": jnp.ones(2)}}, {}):
            saved.append(step)
        manager.wait_until_finished()
    manager.close()
    return saved


def test_checkpoints_come_every_few_steps(tmp_path, monkeypatch):
    options = schema.CheckpointingOptions(save_interval_steps=4)
    # The first step is saved too: a run that cannot save should say so early.
    assert saved_steps(options, tmp_path, 1000.0, monkeypatch) == [1, 4, 8]


def test_checkpoints_come_every_few_seconds(tmp_path, monkeypatch):
    options = schema.CheckpointingOptions(save_interval_seconds=25)
    # The first step is saved at once: a run that cannot save should say so early.
    assert saved_steps(options, tmp_path, 10.0, monkeypatch) == [1, 4, 7, 10]


@pytest.mark.parametrize("name", ["save_interval_steps", "save_interval_seconds", "max_to_keep"])
def test_intervals_are_positive(name):
    with pytest.raises(config_lib.ConfigError, match=f"{name} must be at least 1"):
        schema.CheckpointingOptions(**{name: 0})


def test_the_seed_of_a_model_decides_its_adapters(tiny_model):
    def adapters(seed):
        options = schema.ModelOptions(
            model_id=tiny_model,
            rng_seed=seed,
            lora_config=schema.LoraOptions(rank=2, alpha=2.0),
        )
        model, _ = build.make_model(options, None)
        return [np.asarray(x) for x in jax.tree.leaves(nnx.state(model, nnx.LoRAParam))]

    first, again, other = adapters(1), adapters(1), adapters(2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def warnings_of(folder, longest, caplog, **changes):
    """Return what is said of texts so long, of a model whose config has these changes."""
    caplog.clear()
    if changes:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    model, path = automodel.AutoModel.from_pretrained(str(folder))
    with caplog.at_level(logging.WARNING):
        build.report_context(path, model, longest, "some_setting")
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        pytest.param({}, 512, id="plain"),
        pytest.param({"max_position_embeddings": 40}, 40, id="short"),
        pytest.param({"rope_scaling": {"type": "linear", "factor": 2.0}}, 1024, id="interpolated"),
        pytest.param({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 1024, id="dynamic"),
        pytest.param(
            {
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 200,
                }
            },
            800,
            id="yarn",
        ),
    ],
)
def test_texts_beyond_what_a_model_was_made_for_are_told(changes, most, tmp_path, caplog):
    tiny_llama.write_model(tmp_path)
    assert warnings_of(tmp_path, most, caplog, **changes) == []
    (found,) = warnings_of(tmp_path, most + 1, caplog)
    assert f"up to {most + 1} tokens, and the model was made for {most}" in found
    assert str(tmp_path) in found
    assert "lower some_setting" in found


def test_a_model_that_does_not_say_what_it_was_made_for_is_no_cause(tmp_path, caplog):
    tiny_llama.write_model(tmp_path)
    for value in (None, "many", -1):
        assert warnings_of(tmp_path, 10**9, caplog, max_position_embeddings=value) == []


def test_the_length_of_a_gguf_file_is_known(tmp_path, caplog):
    path = tmp_path / "tiny.gguf"
    gguf_writer.write(path, hf_llama.make(), extra=lambda w: w.add_context_length(30))
    assert len(warnings_of(path, 31, caplog)) == 1
    assert warnings_of(path, 30, caplog) == []


def long_job(tmp_path, tiny_model, rows, **settings):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"model_config.model_id": tiny_model, "data_path": data, **settings}
    return [f"{name}={value}" for name, value in settings.items()] + [f"run_dir={tmp_path / 'run'}"]


LONG = "a" * 600
CASES = {
    "sft": ({"text": LONG}, {"max_target_length": 700}, 601, "max_target_length"),
    "dpo": (
        {"prompt": LONG, "chosen": "b", "rejected": "cde"},
        {"max_prompt_length": 700},
        604,
        "max_prompt_length or max_response_length",
    ),
}


@pytest.mark.parametrize("command", CASES)
def test_commands_tell_of_texts_beyond_the_model(
    command, tiny_model, tmp_path, caplog, monkeypatch
):
    class Spy(ValueError):
        pass

    def spy(*args, **kwargs):
        raise Spy("enough")

    monkeypatch.setattr(build, "report_memory", spy)
    row, settings, length, what = CASES[command]
    line = long_job(tmp_path, tiny_model, [row, row], **settings)
    with caplog.at_level(logging.WARNING):
        assert main.main([command, "base_config.yaml", *line]) == errors.USAGE_ERROR
    (found,) = [m for m in caplog.messages if "the model was made for" in m]
    assert f"up to {length} tokens, and the model was made for 512" in found
    assert f"lower {what}" in found
