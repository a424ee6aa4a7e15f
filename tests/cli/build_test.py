"""Settings become the objects they describe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tunix.cli import build, schema
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
