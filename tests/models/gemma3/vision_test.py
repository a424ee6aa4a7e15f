"""The parts of a Gemma 3 that sees images, by hand: config, pooling, merging, masks, errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec

from tests.models import hf_gemma3_images as hf_images
from tunix.models.gemma3 import merge_embeddings, utils, vision
from tunix.models.gemma3 import model as model_lib
from tunix.models.transformer import cache as cache_lib
from tunix.models.transformer import sharding
from tunix.ops import visibility
from tunix.utils import config as config_lib

SOFT = 7


def tower_config(**changes):
    settings = {
        "image_height": 8,
        "image_width": 8,
        "patch_size": (2, 2),
        "width": 12,
        "depth": 2,
        "mlp_dim": 16,
        "num_heads": 3,
        "num_mm_tokens_per_image": 4,
        "soft_token_placeholder": SOFT,
        "start_of_image_token": 5,
        "end_of_image_token": 6,
    }
    return vision.SigLIPConfig(**settings | changes)


def tiny_config(**changes):
    settings = {
        "num_layers": 2,
        "vocab_size": 32,
        "embed_dim": 8,
        "hidden_dim": 16,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 4,
        "sliding_window_size": 4,
        "attention_types": ("local", "global"),
        "precision": "exact",
        "vision_config": tower_config(),
    }
    return model_lib.ModelConfig.gemma3_270m(**settings | changes)


@pytest.fixture(scope="module")
def model():
    return model_lib.Gemma3(tiny_config(), rngs=nnx.Rngs(0))


IMAGE = [5, SOFT, SOFT, SOFT, SOFT, 6]
TOKENS = jnp.asarray([[2, *IMAGE, 9, 10], [2, 9, 10, *IMAGE]])
PIXELS = jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, 8, 8, 3)), jnp.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"image_width": 16}, "images must be square", id="oblong"),
        pytest.param({"patch_size": (3, 3)}, "a multiple of patch_size", id="patches"),
        pytest.param({"patch_size": (2, 4)}, "two equal positive", id="oblong patches"),
        pytest.param({"num_mm_tokens_per_image": 5}, "must be a square", id="tokens"),
        pytest.param({"num_mm_tokens_per_image": 9}, "cannot be pooled to 3", id="pooling"),
        pytest.param({"num_heads": 5}, "multiple of num_heads", id="heads"),
        pytest.param({"depth": 0}, "depth must be at least 1", id="depth"),
        pytest.param({"norm_eps": 0.0}, "norm_eps must be positive", id="eps"),
        pytest.param({"image_std": (1.0, 0.0, 1.0)}, "image_std must be positive", id="std"),
        pytest.param({"image_mean": (1.0,)}, "three numbers", id="mean"),
        pytest.param({"end_of_image_token": SOFT}, "three different token ids", id="ids"),
    ],
)
def test_a_tower_that_cannot_be_is_refused(changes, message):
    with pytest.raises(config_lib.ConfigError, match=message):
        tower_config(**changes)


def test_all_problems_of_a_tower_come_at_once():
    with pytest.raises(config_lib.ConfigError) as error:
        tower_config(depth=0, norm_eps=-1.0, image_std=(0.0, 1.0, 1.0))
    assert len(error.value.problems) == 3


def test_an_image_must_fit_into_the_window():
    with pytest.raises(config_lib.ConfigError, match="an image takes 4 tokens, more than sliding"):
        tiny_config(sliding_window_size=3)


WITH_IMAGES = {
    "gemma3_4b_pt": 4_300_079_472,
    "gemma3_4b_it": 4_300_079_472,
    "gemma3_12b_pt": 12_187_325_040,
    "gemma3_12b_it": 12_187_325_040,
    "gemma3_27b_pt": 27_432_406_640,
    "gemma3_27b_it": 27_432_406_640,
}


@pytest.mark.parametrize("preset", WITH_IMAGES)
def test_a_preset_with_its_tower_has_the_published_number_of_parameters(preset):
    config = getattr(model_lib.ModelConfig, preset)(text_only=False)
    abstract = nnx.eval_shape(lambda: model_lib.Gemma3(config, rngs=nnx.Rngs(0)))
    leaves = jax.tree.leaves(nnx.state(abstract))
    assert sum(leaf.size for leaf in leaves) == WITH_IMAGES[preset]


def test_the_published_tower_fits_a_mesh():
    config = model_lib.ModelConfig.gemma3_4b_it(text_only=False)
    abstract = nnx.eval_shape(lambda: model_lib.Gemma3(config, rngs=nnx.Rngs(0)))
    mesh = AbstractMesh((4, 2), ("fsdp", "tp"))
    placed = sharding.state_shardings(nnx.state(abstract), mesh)
    tower = placed["vision_tower"]["layers"]
    assert tower["self_attn"]["q_proj"]["w"].get_raw_value().spec == PartitionSpec(
        None, "fsdp", "tp"
    )
    assert tower["mlp"]["fc2"]["w"].get_raw_value().spec == PartitionSpec(None, "tp", "fsdp")


def test_pooling_takes_the_mean_of_squares_of_patches():
    config = tower_config(width=3, num_heads=1)
    projector = vision.MultiModalProjector(
        config, tiny_config(embed_dim=3, vision_config=config), rngs=nnx.Rngs(0)
    )
    projector.proj.w[...] = jnp.eye(3)
    # One channel counts the row of a patch, one its column; the third makes every norm the same.
    row, column = jnp.meshgrid(jnp.arange(4.0), jnp.arange(4.0), indexing="ij")
    patches = jnp.stack([row, column, jnp.full((4, 4), 100.0)], axis=-1).reshape(1, 16, 3)
    out = projector(patches)[0]
    pooled = np.array([[0.5, 0.5, 100], [0.5, 2.5, 100], [2.5, 0.5, 100], [2.5, 2.5, 100]])
    expected = pooled / np.sqrt((pooled**2).mean(axis=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(out, expected, rtol=1e-5)


def test_the_tower_sees_all_patches_from_every_patch(model):
    changed = PIXELS[0].at[:, 7, 7].add(1.0)  # the last patch
    difference = np.abs(model.vision_tower(changed) - model.vision_tower(PIXELS[0]))
    assert (difference.max(axis=-1) > 1e-6).all()


@pytest.mark.parametrize("remat", ["none", "dots_saveable"])
def test_recomputation_does_not_change_the_tower(remat, model):
    other = model_lib.Gemma3(dataclasses.replace(model.config, remat=remat), rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(other.vision_tower(PIXELS[0]), model.vision_tower(PIXELS[0]))


def merged(vectors, mask):
    text = jnp.zeros((2, 4, 1)) - 1.0
    return merge_embeddings.merge_embeddings(
        text_embeddings=text, vision_embeddings=vectors, mask=jnp.asarray(mask, bool)
    )[..., 0]


VECTORS = jnp.arange(1.0, 9.0).reshape(2, 2, 2, 1)  # two rows of two images of two vectors


def test_slots_take_the_vectors_of_their_own_row_in_order():
    out = merged(VECTORS, [[0, 1, 1, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(out, [[-1, 1, 2, -1], [5, 6, 7, 8]])
    flat = merged(VECTORS.reshape(2, 4, 1), [[0, 1, 1, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(flat, out)


def test_more_slots_than_vectors_is_an_error_and_nan_where_none_can_be_raised():
    mask = [[0, 1, 1, 1], [0, 0, 1, 1]]
    with pytest.raises(ValueError, match=r"\[3, 2\] image slots but 2 image vectors"):
        merged(VECTORS[:, :1], mask)
    out = jax.jit(merged)(VECTORS[:, :1], jnp.asarray(mask))
    np.testing.assert_array_equal(out, [[-1, 1, 2, np.nan], [-1, -1, 5, 6]])


def test_the_gradient_of_a_vector_is_that_of_its_slot():
    weights = jnp.arange(8.0).reshape(2, 4)

    def total(vectors):
        return (merged(vectors, [[0, 1, 1, 0], [1, 1, 0, 0]]) * weights).sum()

    grads = jax.grad(total)(VECTORS)[..., 0]
    np.testing.assert_array_equal(grads, [[[1, 2], [0, 0]], [[4, 5], [0, 0]]])


def test_images_are_numbered_in_every_row():
    is_image = jnp.asarray([[1, 1, 0, 1, 0, 1, 1], [0, 0, 1, 1, 1, 0, 0]], bool)
    spans = utils.image_span_ids(is_image)
    np.testing.assert_array_equal(spans, [[1, 1, 0, 2, 0, 3, 3], [0, 0, 1, 1, 1, 0, 0]])


def test_the_mask_is_causal_but_for_the_tokens_of_one_image():
    tokens = jnp.asarray([[SOFT, SOFT, 1, SOFT, SOFT, 0]])
    mask = utils.get_attention_mask(
        tokens, inputs_mask=jnp.asarray([[1, 1, 1, 1, 1, 0]]), token_placeholder_id=SOFT
    )
    expected = [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 0],
    ]
    np.testing.assert_array_equal(mask[0], expected)
    np.testing.assert_array_equal(utils.get_attention_mask(tokens)[0], np.tri(6))


@pytest.mark.slow
def test_the_mask_of_the_model_changes_nothing_but_padding(model):
    plain, _ = model(TOKENS, images=PIXELS)
    masked, _ = model(TOKENS, None, None, model.get_attention_mask(TOKENS), images=PIXELS)
    np.testing.assert_allclose(masked, plain, atol=1e-6)
    padded = jnp.pad(TOKENS, ((0, 0), (0, 3)))
    mask = model.get_attention_mask(padded, inputs_mask=jnp.arange(12)[None] < 9)
    out, _ = model(padded, None, None, mask, images=PIXELS)
    np.testing.assert_allclose(out[:, :9], plain, atol=1e-5)


def test_an_image_is_seen_by_what_follows_and_by_all_of_itself(model):
    before, _ = model(TOKENS, images=PIXELS)
    changed = PIXELS.at[:, :, 7, 7].add(1.0)
    after, _ = model(TOKENS, images=changed)
    moved = np.abs(np.asarray(after) - np.asarray(before)).max(axis=-1) > 1e-6
    np.testing.assert_array_equal(moved[0], [0, 0, 1, 1, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(moved[1], [0, 0, 0, 0, 1, 1, 1, 1, 1])


def test_a_row_packed_with_two_segments_is_two_rows(model):
    packed = jnp.asarray([[2, *IMAGE, 9, 2, *IMAGE, 10]])
    segments = jnp.asarray([[1] * 8 + [2] * 8])
    positions = jnp.asarray([[*range(8), *range(8)]])
    pixels = PIXELS.reshape(1, 2, 8, 8, 3)
    out, _ = model(packed, positions, segment_ids=segments, images=pixels)
    for half, image in ((slice(0, 8), 0), (slice(8, 16), 1)):
        alone, _ = model(packed[:, half], images=pixels[:, image : image + 1])
        np.testing.assert_allclose(out[:, half], alone, atol=1e-5)


def test_bfloat16_products_stay_near(model):
    fast = model_lib.Gemma3(dataclasses.replace(model.config, precision="fast"), rngs=nnx.Rngs(0))
    exact, _ = model(TOKENS, images=PIXELS)
    rounded, _ = fast(TOKENS, images=PIXELS)
    assert 0 < np.abs(rounded - exact).max() < 0.03 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"images": PIXELS[:1]}, "for 2 rows, got shape", id="rows"),
        pytest.param({"images": PIXELS[:, 0]}, r"must be \[rows, images, height", id="rank"),
        pytest.param({"images": PIXELS[:, :, :4]}, "resize them with", id="size"),
        pytest.param({"images": None}, r"\[4, 4\] image tokens \(id 7\), but no images", id="none"),
        pytest.param(
            {"visibility": visibility.Visibility(span_ids=TOKENS, order=TOKENS)},
            r"images make \['span_ids', 'order'\] themselves",
            id="spans and order",
        ),
        pytest.param({"tokens": TOKENS[:, :4]}, "a prompt was cut off inside", id="cut off"),
        pytest.param(
            {"tokens": jnp.tile(TOKENS, (1, 2))}, "8] image slots but 4 image vectors", id="few"
        ),
    ],
)
def test_images_that_do_not_fit_the_tokens_are_refused(options, message, model):
    options = {"images": PIXELS} | options
    with pytest.raises(ValueError, match=message):
        model.hidden(options.pop("tokens", TOKENS), **options)


def test_generation_from_images_is_refused(model):
    cache = cache_lib.init_cache(model.config, 2, 16)
    with pytest.raises(ValueError, match="generation from images is not supported"):
        model(TOKENS, cache=cache, images=PIXELS)


def test_a_text_model_has_no_eyes():
    text = model_lib.Gemma3(tiny_config(vision_config=None), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"without an image tower.*text_only=False"):
        text(TOKENS, images=PIXELS)
    assert np.isfinite(text(TOKENS)[0]).all()


def test_the_tiny_model_of_transformers_has_the_tokens_that_the_tests_mean():
    counts = (hf_images.rows() == hf_images.SOFT).sum(axis=1)
    assert counts.tolist() == [4 * count for count in hf_images.COUNTS]
