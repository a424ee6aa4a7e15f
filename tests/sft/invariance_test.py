"""The invariance contract of supervised training, and the memory that its loss takes."""

import jax
import jax.numpy as jnp
import pytest

from tests import virtual_devices
from tests.sft import toys
from tunix.sft import losses
from tunix.sft.loop import train_state


@pytest.mark.parametrize("devices", ["1 4", pytest.param("1 2 4 8", marks=pytest.mark.slow)])
def test_no_layout_split_or_number_of_devices_changes_loss_metrics_or_gradient(devices):
    result = virtual_devices.run("tests.sft.invariance_run", *devices.split(), devices=8)
    assert len(result["found"]) == 3 * 2 * len(devices.split())
    assert max(result["found"].values()) < 1e-5, result["found"]
    assert result["mean of means"] > 1e-2, "a wrong trainer would not be noticed"


@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.1, "z_loss": 1e-4}])
def test_memory_of_loss_and_gradient_does_not_grow_with_vocabulary_times_tokens(settings):
    vocab = 262_144
    model = toys.tiny_decoder(vocab_size=vocab, num_layers=1, embed_dim=8, hidden_dim=8)
    split, params, variables = train_state.split_model(model)
    loss = losses.NextTokenLoss(**settings)

    def temporary_bytes(tokens):
        def total(params, batch):
            return loss(split.merge(params, variables, split.frozen), **batch).loss_sum

        shape = (tokens // 256, 256)
        batch = {
            "input_tokens": jax.ShapeDtypeStruct(shape, jnp.int32),
            "input_mask": jax.ShapeDtypeStruct(shape, jnp.float32),
        }
        compiled = jax.jit(jax.grad(total)).lower(params, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = 1024, 4096
    slope = (temporary_bytes(many) - temporary_bytes(few)) / (many - few)
    assert slope < 0.05 * vocab * 4, f"{slope} bytes a token"
