"""The supervised loss: by hand, against plain logits, and however its rows are laid out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.sft import toys
from tunix.models import lora
from tunix.sft import losses, training_input
from tunix.sft.loop import train_state
from tunix.utils import config as config_lib


def loss_and_grads(model, batch, loss=losses.next_token_loss):
    """Loss sum, weight sum and gradients by name."""
    batch = {name: jnp.asarray(value) for name, value in batch.items()}
    split, params, variables = train_state.split_model(model)

    def total(params):
        merged = split.merge(params, variables, split.frozen)
        output = loss(merged, **batch)
        return output.loss_sum, output

    (_, output), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    return float(output.loss_sum), float(output.weight_sum), jax.device_get(grads)


def assert_same_gradients(one, other, tolerance=1e-5):
    gap = np.sqrt(sum(np.sum((one[n] - other[n]) ** 2) for n in one))
    assert gap / np.sqrt(sum(np.sum(g**2) for g in one.values())) < tolerance


def test_the_loss_of_known_logits():
    class Constant(nnx.Module):
        def __call__(self, tokens, positions, cache, attention_mask):
            # Every token is followed by token 0 with probability 3/4, else by token 1.
            logits = jnp.log(jnp.array([0.75, 0.25]))
            return jnp.broadcast_to(logits, (*tokens.shape, 2)), cache

    tokens = jnp.array([[1, 0, 1, 0]])
    weights = jnp.array([[9.0, 1.0, 2.0, 0.0]])  # the first token cannot be predicted
    output = losses.next_token_loss(Constant(), tokens, weights)
    np.testing.assert_allclose(output.loss_sum, -np.log(0.75) - 2 * np.log(0.25), rtol=1e-6)
    assert output.weight_sum == 3.0
    np.testing.assert_allclose(output.finalize()["nll"], output.finalize()["loss"])


def test_what_carries_no_weight_may_be_anything():
    class Exploding(nnx.Module):
        def __call__(self, tokens, positions, cache, attention_mask):
            logits = jnp.zeros((*tokens.shape, 4))
            return jnp.where((tokens == 3)[..., None], jnp.inf, logits), cache

    output = losses.next_token_loss(
        Exploding(), jnp.array([[1, 2, 3, 3]]), jnp.array([[1, 1, 0, 0]])
    )
    np.testing.assert_allclose(output.loss_sum, np.log(4), rtol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_the_fused_way_equals_plain_logits(tied):
    batch = toys.token_batch(3, 10)
    fused = loss_and_grads(toys.tiny_decoder(weight_tying=tied), batch)
    plain = loss_and_grads(toys.ForeignModel(toys.tiny_decoder(weight_tying=tied)), batch)
    np.testing.assert_allclose(fused[:2], plain[:2], rtol=1e-6)
    assert_same_gradients({f"inner.{n}": g for n, g in fused[2].items()}, plain[2])


def test_adapters_get_the_same_gradient_whether_or_not_the_head_is_fused():
    def adapted():
        config = lora.LoraConfig(rank=2, alpha=4.0)
        model = lora.apply_lora(toys.tiny_decoder(), config, rngs=nnx.Rngs(1))
        for _, projection in lora.iter_projections(model):
            projection.lora_b[...] = jnp.ones_like(projection.lora_b[...]) * 0.05
        return model

    batch = toys.token_batch(2, 8)
    fused = loss_and_grads(adapted(), batch)
    plain = loss_and_grads(toys.ForeignModel(adapted()), batch)
    assert all("lora" in name for name in fused[2])
    assert_same_gradients({f"inner.{n}": g for n, g in fused[2].items()}, plain[2])


def test_slicing_to_the_positions_with_loss_changes_nothing():
    batch = toys.token_batch(3, 12)
    batch["input_mask"][:, 5:] = 0.0
    expected = loss_and_grads(toys.tiny_decoder(), batch)
    positions = training_input.loss_positions(batch["input_mask"])
    assert positions["num_loss_positions"] < batch["input_tokens"].size
    sliced = loss_and_grads(toys.tiny_decoder(), batch | positions)
    np.testing.assert_allclose(sliced[:2], expected[:2], rtol=1e-6)
    assert_same_gradients(expected[2], sliced[2])


ROWS = [[5, 9, 2, 7, 1], [3, 3, 8], [6, 1, 4, 4, 2, 9, 11]]
WEIGHTS = [[0, 0, 1.0, 2.0, 0.5], [0, 1.0, 1.0], [0, 0, 0, 1.0, 1.0, 0.3, 1.0]]
LENGTH = 9


def padded(side):
    tokens = np.full((3, LENGTH), 31, np.int32)  # what padding holds must not matter
    weights = np.zeros((3, LENGTH), np.float32)
    positions = np.zeros((3, LENGTH), np.int32)
    segments = np.zeros((3, LENGTH), np.int32)
    for i, (row, weight) in enumerate(zip(ROWS, WEIGHTS, strict=True)):
        start = 0 if side == "right" else LENGTH - len(row)
        where = slice(start, start + len(row))
        tokens[i, where], weights[i, where] = row, weight
        positions[i, where], segments[i, where] = np.arange(len(row)), 1
    return {
        "input_tokens": tokens,
        "input_mask": weights,
        "positions": positions,
        "segment_ids": segments,
    }


def packed():
    flat = [t for row in ROWS for t in row]
    weights = [w for row in WEIGHTS for w in row]
    positions = [p for row in ROWS for p in range(len(row))]
    segments = [i + 1 for i, row in enumerate(ROWS) for _ in row]
    filling = 2
    return {
        "input_tokens": np.array([flat + [31] * filling], np.int32),
        "input_mask": np.array([weights + [0.0] * filling], np.float32),
        "positions": np.array([positions + [0] * filling], np.int32),
        "segment_ids": np.array([segments + [0] * filling], np.int32),
    }


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(lambda: padded("left"), id="padded on the left"),
        pytest.param(lambda: padded("right"), id="padded on the right with segments"),
        pytest.param(packed, id="packed into one row"),
    ],
)
@pytest.mark.parametrize("foreign", [False, True], ids=["decoder", "foreign"])
def test_the_layout_of_the_rows_does_not_matter(layout, foreign):
    def model():
        return toys.ForeignModel(toys.tiny_decoder()) if foreign else toys.tiny_decoder()

    plain = {name: padded("right")[name] for name in ("input_tokens", "input_mask")}
    expected = loss_and_grads(model(), plain)
    arranged = layout()
    if foreign:
        # A foreign module knows positions and masks; padding sees itself, so that rows of a
        # softmax are not empty.
        same = arranged["segment_ids"][:, :, None] == arranged["segment_ids"][:, None, :]
        causal = np.tril(np.ones(same.shape[1:], bool))
        arranged["attention_mask"] = same & causal
    got = loss_and_grads(model(), arranged)
    np.testing.assert_allclose(got[:2], expected[:2], rtol=1e-5)
    assert_same_gradients(expected[2], got[2])


def test_the_first_token_of_a_packed_segment_is_not_predicted_from_the_one_before():
    weights = losses.predictable_weights(jnp.ones((1, 6)), jnp.array([[1, 1, 2, 2, 0, 0]]))
    np.testing.assert_array_equal(weights, [[0, 1, 0, 1, 0, 1]])


def test_boolean_and_integer_masks_are_weights_of_one():
    model, batch = toys.tiny_decoder(), toys.token_batch(2, 6)
    tokens, results = jnp.asarray(batch["input_tokens"]), []
    for dtype in (np.bool_, np.int32, np.float32):
        mask = (batch["input_mask"] > 0).astype(dtype)
        results.append(losses.next_token_loss(model, tokens, jnp.asarray(mask)).finalize())
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize(
    ("settings", "tied"), [({"label_smoothing": 0.2}, True), ({"z_loss": 0.1}, False)]
)
def test_smoothing_and_z_loss_are_those_of_plain_logits(settings, tied):
    loss = losses.NextTokenLoss(**settings)
    batch = toys.token_batch(3, 10)
    fused = loss_and_grads(toys.tiny_decoder(weight_tying=tied), batch, loss)
    foreign = toys.ForeignModel(toys.tiny_decoder(weight_tying=tied))
    plain = loss_and_grads(foreign, batch, loss)
    np.testing.assert_allclose(fused[:2], plain[:2], rtol=1e-5)
    assert_same_gradients({f"inner.{n}": g for n, g in fused[2].items()}, plain[2])


def test_smoothing_and_z_loss_of_known_logits():
    class Constant(nnx.Module):
        def __call__(self, tokens, positions, cache, attention_mask):
            return jnp.broadcast_to(jnp.array([2.0, 0.0]), (*tokens.shape, 2)), cache

    tokens, weights = jnp.array([[1, 0, 1]]), jnp.array([[0.0, 1.0, 2.0]])
    normalizer = np.log(np.exp(2.0) + 1.0)
    nll = np.array([normalizer - 2.0, normalizer])
    everyone = normalizer - 1.0
    expected = np.array([1.0, 2.0]) @ (0.9 * nll + 0.1 * everyone + 0.5 * normalizer**2)
    output = losses.NextTokenLoss(label_smoothing=0.1, z_loss=0.5)(Constant(), tokens, weights)
    np.testing.assert_allclose(output.loss_sum, expected, rtol=1e-6)
    np.testing.assert_allclose(output.metrics["nll"][0], np.array([1.0, 2.0]) @ nll, rtol=1e-6)


def test_settings_out_of_range_are_named_together():
    with pytest.raises(config_lib.ConfigError) as caught:
        losses.NextTokenLoss(label_smoothing=1.0, z_loss=-1.0)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"label_smoothing": -0.5},
        {"label_smoothing": 1.0},
        {"z_loss": -0.5},
        {"z_loss": float("inf")},
        {"z_loss": float("nan")},
    ],
    ids=str,
)
def test_a_setting_out_of_range_is_refused(settings):
    with pytest.raises(config_lib.ConfigError, match=next(iter(settings))):
        losses.NextTokenLoss(**settings)
