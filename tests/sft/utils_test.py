"""Masks, positions and small helpers."""

import logging

import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.sft import toys
from tunix.sft import utils


def test_a_query_sees_real_keys_up_to_itself():
    mask = utils.make_causal_attn_mask(jnp.array([[False, True, True]]))
    np.testing.assert_array_equal(
        mask[0], [[False, False, False], [False, True, False], [False, True, True]]
    )


def test_integer_masks_are_understood():
    np.testing.assert_array_equal(
        utils.make_causal_attn_mask(jnp.array([[1, 0]])),
        utils.make_causal_attn_mask(jnp.array([[True, False]])),
    )


def test_positions_count_real_tokens():
    mask = jnp.array([[True, True, True, False], [False, False, True, True]])
    np.testing.assert_array_equal(
        utils.build_positions_from_mask(mask), [[0, 1, 2, 2], [0, 0, 0, 1]]
    )


def test_adapters_are_found():
    class Adapted(nnx.Module):
        def __init__(self):
            self.lora_a = nnx.LoRAParam(jnp.ones(1))

    assert utils.is_lora_enabled(Adapted())
    assert not utils.is_lora_enabled(toys.Linear(rngs=nnx.Rngs(0)))


def test_time_is_logged_unless_suppressed(caplog):
    with caplog.at_level(logging.INFO):
        with utils.time_measure("loading"):
            pass
        with utils.time_measure("quiet", suppress_logging=True):
            pass
    assert "loading took 0." in caplog.text
    assert "quiet" not in caplog.text


def test_memory_is_shown_for_every_device(capsys):
    utils.show_hbm_usage("before")
    assert capsys.readouterr().out.startswith("before ")
