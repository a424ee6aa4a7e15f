"""The shared decoder: layouts, cache, packing and remat compute one function."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tunix.models.transformer import cache as cache_lib
from tunix.models.transformer import config as config_lib
from tunix.models.transformer import decoder as decoder_lib
from tunix.models.transformer import layout
from tunix.ops import linear_logprob, tiled_attention, visibility
from tunix.utils import config as utils_config

TINY = config_lib.TransformerConfig(
    num_layers=3,
    vocab_size=61,
    embed_dim=32,
    hidden_dim=48,
    num_heads=4,
    head_dim=8,
    num_kv_heads=2,
    rope_theta=1e4,
    norm_eps=1e-5,
    precision="exact",
)


@pytest.fixture(scope="module")
def model():
    return decoder_lib.Decoder(TINY, rngs=nnx.Rngs(0))


def tokens_of(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(1, TINY.vocab_size, shape), jnp.int32)


def close(a, b, tolerance=2e-6):
    np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance)


def test_unrolled_layers_compute_what_scanned_layers_compute(model):
    tokens = tokens_of(2, 9)
    close(layout.unroll_layers(model)(tokens)[0], model(tokens)[0])


def test_unrolling_and_stacking_are_inverse(model):
    back = layout.stack_layers(layout.unroll_layers(model))
    assert back.config == model.config
    jax.tree.map(np.testing.assert_array_equal, nnx.state(back), nnx.state(model))


def test_a_stacked_state_unrolls_to_the_state_of_the_unrolled_model(model):
    unrolled = layout.unroll_layers(model)
    state = layout.unroll_state(nnx.state(model))
    jax.tree.map(np.testing.assert_array_equal, state, nnx.state(unrolled))
    jax.tree.map(np.testing.assert_array_equal, layout.stack_state(state), nnx.state(model))


@pytest.mark.parametrize("scanned", [True, False], ids=["scanned", "unrolled"])
def test_decoding_with_a_cache_gives_the_logits_of_the_full_forward(model, scanned):
    model = model if scanned else layout.unroll_layers(model)
    tokens = tokens_of(2, 10)
    full, _ = model(tokens)
    cache = cache_lib.init_cache(model.config, 2, 16)
    logits, cache = model(tokens[:, :4], cache=cache)
    close(logits, full[:, :4])
    for t in range(4, 10):
        logits, cache = model(tokens[:, t : t + 1], cache=cache)
        close(logits[:, 0], full[:, t])
    np.testing.assert_array_equal(cache.lengths, [10, 10])


def test_right_padding_of_a_prompt_leaves_no_trace_in_the_cache(model):
    tokens = tokens_of(1, 8)
    full, _ = model(tokens)
    padded = jnp.concatenate([tokens[:, :3], tokens_of(1, 3, seed=9)], axis=1)
    _, cache = model(padded, cache=cache_lib.init_cache(TINY, 1, 12))
    cache = cache.replace(lengths=jnp.array([3]))
    logits, _ = model(tokens[:, 3:], cache=cache)
    close(logits, full[:, 3:])


def test_packed_sequences_do_not_see_each_other(model):
    a, b = tokens_of(1, 5), tokens_of(1, 4, seed=1)
    packed = jnp.concatenate([a, b], axis=1)
    segments = jnp.array([[1] * 5 + [2] * 4])
    positions = jnp.array([[*range(5), *range(4)]])
    logits, _ = model(packed, positions, segment_ids=segments)
    close(logits[:, :5], model(a)[0])
    close(logits[:, 5:], model(b)[0])


def test_completions_share_a_prompt_without_seeing_each_other(model):
    prompt, c1, c2 = tokens_of(1, 4), tokens_of(1, 3, seed=1), tokens_of(1, 2, seed=2)
    seen = visibility.Visibility(
        positions=jnp.array([[0, 1, 2, 3, 4, 5, 6, 4, 5]]),
        segment_ids=jnp.array([[1] * 4 + [2] * 3 + [3] * 2]),
        prefix_ids=jnp.array([[1] * 9]),
    )
    hidden, _ = model.hidden(jnp.concatenate([prompt, c1, c2], axis=1), seen)
    logits = model.output_head().logits(hidden, precision="exact")
    close(logits[:, 4:7], model(jnp.concatenate([prompt, c1], axis=1))[0][:, 4:])
    close(logits[:, 7:], model(jnp.concatenate([prompt, c2], axis=1))[0][:, 4:])


def zigzag(length, parts=2):
    """Return the order in which context parallelism lays tokens: early and late ones in pairs."""
    blocks = np.split(np.arange(length), 2 * parts)
    return np.concatenate([np.r_[blocks[i], blocks[-1 - i]] for i in range(parts)])


@pytest.mark.parametrize(
    ("window", "chunk"),
    [pytest.param(None, 64, id="one tile"), pytest.param(3, 8, id="several tiles, local layers")],
)
def test_tokens_permuted_with_their_visibility_give_the_same_loss_and_gradients(
    window, chunk, monkeypatch
):
    monkeypatch.setattr(tiled_attention, "LEAST_CHUNK", chunk)
    monkeypatch.setattr(tiled_attention, "GREATEST_CHUNK", chunk)
    local = {"attention_types": ("local", "global"), "sliding_window_size": window}
    model = decoder_lib.Decoder(
        dataclasses.replace(TINY, **(local if window else {})), rngs=nnx.Rngs(0)
    )
    # One row of a prompt and two completions, one of two sequences and padding.
    length = 24
    tokens, targets = tokens_of(2, length), tokens_of(2, length, seed=1)
    seen = visibility.Visibility(
        positions=jnp.array([[*range(14), *range(6, 16)], [*range(9), *range(11), *[0] * 4]]),
        segment_ids=jnp.array([[1] * 6 + [2] * 8 + [3] * 10, [1] * 9 + [2] * 11 + [0] * 4]),
        prefix_ids=jnp.array([[1] * 24, [0] * 24]),
        order=jnp.tile(jnp.arange(length), (2, 1)),
    )
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state, tokens, targets, seen):
        def loss(state):
            model = nnx.merge(graphdef, state)
            hidden, _ = model.hidden(tokens, seen)
            total, _ = linear_logprob.linear_cross_entropy(
                hidden.reshape(-1, hidden.shape[-1]),
                model.output_head().weight,
                targets.reshape(-1),
                (seen.segment_ids != 0).reshape(-1).astype(jnp.float32),
                precision="exact",
            )
            return total, hidden

        return jax.value_and_grad(loss, has_aux=True)(state)

    (expected, hidden), gradient = run(state, tokens, targets, seen)
    rng = np.random.default_rng(0)
    shuffled = np.stack([rng.permutation(length) for _ in range(2)])
    for places in (np.tile(zigzag(length), (2, 1)), shuffled):
        tokens_, targets_, seen_ = jax.tree.map(
            lambda x, places=places: jnp.take_along_axis(x, places, axis=1),
            (tokens, targets, seen),
        )
        (found, states), found_gradient = run(state, tokens_, targets_, seen_)
        close(states, jnp.take_along_axis(hidden, places[..., None], axis=1))
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        jax.tree.map(lambda a, b: close(a, b, 2e-5), found_gradient, gradient)


def test_an_attention_mask_hides_what_it_says(model):
    tokens = tokens_of(1, 6)
    mask = jnp.tril(jnp.ones((6, 6), bool)).at[:, 0].set(False)[None]
    logits, _ = model(tokens, jnp.arange(6)[None], None, mask)
    changed, _ = model(tokens.at[0, 0].set(5), jnp.arange(6)[None], None, mask)
    close(logits[:, 1:], changed[:, 1:])


@pytest.mark.parametrize("remat", config_lib.REMAT_POLICIES)
@pytest.mark.parametrize("scanned", [True, False], ids=["scanned", "unrolled"])
def test_gradients_do_not_depend_on_remat_or_layout(model, remat, scanned):
    def loss(state, graphdef):
        return (nnx.merge(graphdef, state)(tokens_of(2, 6))[0] ** 2).mean()

    def gradient(model):
        graphdef, state = nnx.split(model)
        return jax.grad(loss)(state, graphdef)

    expected = gradient(decoder_lib.with_config(model, remat="none"))
    model = decoder_lib.with_config(model, remat=remat)
    if scanned:
        found = gradient(model)
    else:
        found = layout.stack_state(gradient(layout.unroll_layers(model)))
    jax.tree.map(lambda a, b: close(a, b, 1e-6), found, expected)


def test_a_tied_head_is_the_embedding_and_an_untied_one_is_not(model):
    tied = decoder_lib.Decoder(dataclasses.replace(TINY, weight_tying=True), rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(tied.output_head().weight, tied.embed_tokens.w[...])
    assert "lm_head" not in nnx.state(tied)
    assert not np.array_equal(model.output_head().weight, model.embed_tokens.w[...])


def test_a_changed_config_keeps_the_weights(model):
    fast = decoder_lib.with_config(model, precision="fast")
    assert fast.layers.mlp.up_proj.precision == "fast"
    assert model.layers.mlp.up_proj.precision == "exact"
    np.testing.assert_array_equal(fast.embed_tokens.w[...], model.embed_tokens.w[...])


def test_a_cached_call_refuses_positions_of_its_own(model):
    cache = cache_lib.init_cache(TINY, 1, 4)
    with pytest.raises(ValueError, match=r"follow from cache\.lengths"):
        model(tokens_of(1, 2), jnp.zeros((1, 2), jnp.int32), cache)


def test_every_invalid_size_is_reported_at_once():
    with pytest.raises(utils_config.ConfigError) as error:
        dataclasses.replace(TINY, num_kv_heads=3, head_dim=7, remat="nothing", rope_theta=0.0)
    message = str(error.value)
    for part in ("multiple of num_kv_heads", "head_dim must be even", "rope_theta"):
        assert part in message
    assert "did you mean 'nothing_saveable'?" in message
