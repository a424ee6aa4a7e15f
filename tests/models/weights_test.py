"""Checkpoint and model correspond tensor by tensor, or the error lists what does not."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tunix.models import dummy_model_creator, lora, weight_table, weights
from tunix.models.llama3 import model as llama3
from tunix.models.llama3 import params
from tunix.models.qwen3 import params as qwen3_params
from tunix.models.transformer import sharding
from tunix.models.weight_table import Weight

TINY = llama3.ModelConfig(
    num_layers=3,
    vocab_size=13,
    embed_dim=8,
    hidden_dim=12,
    num_heads=2,
    head_dim=4,
    num_kv_heads=1,
    rope_theta=1e4,
    norm_eps=1e-5,
    precision="exact",
)
UNROLLED = dataclasses.replace(TINY, scan_layers=False)
TIED = dataclasses.replace(TINY, weight_tying=True)


class Arrays:
    """A checkpoint in memory that counts what is read."""

    where = "the checkpoint"

    def __init__(self, arrays):
        self.arrays, self.reads = dict(arrays), []

    @property
    def shapes(self):
        return {name: array.shape for name, array in self.arrays.items()}

    def read(self, name):
        self.reads.append(name)
        return self.arrays[name]


def model_of(config, seed=1):
    return dummy_model_creator.create_dummy_model(llama3.Llama3, config, random_seed=seed)


def checkpoint(config):
    return Arrays(weights.export_tensors(model_of(config), params.WEIGHTS))


def load(config, source, table=params.WEIGHTS, **options):
    return weights.load_model(llama3.Llama3, config, table, source, **options)


def problems_of(config, source, table=params.WEIGHTS, headline="does not fit the model"):
    with pytest.raises(weight_table.WeightsError) as error:
        load(config, source, table)
    assert str(error.value).startswith(f"the checkpoint {headline}:")
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
    return error.value.problems


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, nnx.state(a), nnx.state(b))


@pytest.mark.parametrize("config", [TINY, UNROLLED, TIED], ids=["scanned", "unrolled", "tied"])
def test_what_is_exported_loads_again(config):
    source = checkpoint(config)
    assert_equal(load(config, source), model_of(config))
    assert sorted(source.reads) == sorted(source.shapes)


def test_scanned_and_unrolled_models_export_the_same_tensors():
    scanned, unrolled = checkpoint(TINY), checkpoint(UNROLLED)
    assert scanned.shapes == unrolled.shapes
    for name in scanned.shapes:
        np.testing.assert_array_equal(scanned.read(name), unrolled.read(name))


def test_projections_are_stored_transposed_under_their_hugging_face_names():
    model, source = model_of(TINY), checkpoint(TINY)
    np.testing.assert_array_equal(
        source.read("model.layers.2.self_attn.k_proj.weight"),
        model.layers.self_attn.k_proj.w[...][2].T,
    )
    np.testing.assert_array_equal(source.read("lm_head.weight"), model.lm_head.w[...])
    assert "lm_head.weight" not in checkpoint(TIED).shapes


def test_missing_unexpected_and_misshapen_tensors_come_in_one_error():
    source = checkpoint(TINY)
    del source.arrays["model.norm.weight"]
    for i in range(3):
        source.arrays[f"model.layers.{i}.self_attn.q_proj.bias"] = np.zeros(8, np.float32)
    source.arrays["model.layers.1.mlp.up_proj.weight"] = np.zeros((12, 9), np.float32)
    assert set(problems_of(TINY, source)) == {
        "no checkpoint tensor model.norm.weight (8,)",
        "no parameter for checkpoint tensor model.layers.{i}.self_attn.q_proj.bias (8,) "
        "for i in 0, 1, 2",
        "checkpoint tensor model.layers.1.mlp.up_proj.weight has shape (12, 9), "
        "the model needs (12, 8)",
    }
    assert source.reads == []


def test_a_layer_too_many_or_too_few_is_noticed():
    source = checkpoint(TINY)
    assert all(
        " for i in " not in p for p in problems_of(dataclasses.replace(TINY, num_layers=2), source)
    )
    problems = problems_of(dataclasses.replace(TINY, num_layers=5), source)
    assert (
        "no checkpoint tensor model.layers.{i}.mlp.up_proj.weight (12, 8) for i in 3, 4" in problems
    )


def test_a_parameter_that_the_table_forgot_is_noticed():
    table = [row for row in params.WEIGHTS if row.ours != "norm.scale"]
    problems = problems_of(TINY, checkpoint(TINY), table)
    assert "no row of the weight table for parameter norm.scale" in problems
    assert "no parameter for checkpoint tensor model.norm.weight (8,)" in problems


def test_a_redundant_copy_of_a_tied_head_is_accepted_if_it_is_one():
    source = checkpoint(TIED)
    source.arrays["lm_head.weight"] = source.arrays["model.embed_tokens.weight"].copy()
    assert_equal(load(TIED, source), model_of(TIED))


@pytest.mark.parametrize("shape", [(13, 8), (12, 8)], ids=["values", "shape"])
def test_a_tied_head_that_differs_from_the_embedding_is_an_error(shape):
    source = checkpoint(TIED)
    source.arrays["lm_head.weight"] = np.zeros(shape, np.float32)
    (problem,) = problems_of(TIED, source)
    assert "lm_head.weight differs from embed_tokens.w" in problem
    assert "tie_word_embeddings" in problem


def test_an_untied_model_without_a_head_is_an_error():
    (problem,) = problems_of(TINY, checkpoint(TIED))
    assert problem == "no checkpoint tensor lm_head.weight (13, 8)"


def test_frequencies_in_files_of_old_transformers_are_expected():
    source = checkpoint(TINY)
    for i in range(3):
        source.arrays[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = np.zeros(2)
    assert_equal(load(TINY, source), model_of(TINY))


def test_integers_are_not_weights():
    source = checkpoint(TINY)
    source.arrays["model.norm.weight"] = np.ones(8, np.int8)
    assert "model.norm.weight holds int8" in problems_of(TINY, source)[0]


def test_parameters_take_the_dtype_of_the_config():
    config = dataclasses.replace(TINY, param_dtype="bfloat16")
    found = load(config, checkpoint(TINY))
    expected = jax.tree.map(lambda x: x.astype(jnp.bfloat16), nnx.state(model_of(TINY)))
    jax.tree.map(np.testing.assert_array_equal, nnx.state(found), expected)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(found))} == {"bfloat16"}


def test_loaded_parameters_can_be_donated():
    model = load(TINY, checkpoint(TINY))
    state = nnx.state(model)
    doubled = jax.jit(lambda s: jax.tree.map(lambda x: 2 * x, s), donate_argnums=0)(state)
    expected = jax.tree.map(lambda x: 2 * x, nnx.state(model_of(TINY)))
    jax.tree.map(np.testing.assert_array_equal, doubled, expected)


def test_a_mesh_gets_the_parameters_where_the_rules_say():
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"))
    model = load(TINY, checkpoint(TINY), mesh=mesh)
    assert_equal(model, model_of(TINY))
    placed = model.layers.mlp.up_proj.w.get_raw_value().sharding
    propagated = sharding.with_propagated_axes(mesh)
    assert placed == jax.sharding.NamedSharding(propagated, jax.P(None, "fsdp", "tp"))


def test_adapters_have_no_hugging_face_name_until_they_are_merged():
    model = model_of(TINY)
    config = lora.LoraConfig(rank=2, alpha=2.0, module_path="q_proj")
    lora.apply_lora(model, config, rngs=nnx.Rngs(0))
    with pytest.raises(weight_table.WeightsError, match="merge_lora") as error:
        weights.export_tensors(model, params.WEIGHTS)
    assert len(error.value.problems) == 2
    names = dict(weights.export_tensors(lora.merge_lora(model), params.WEIGHTS))
    assert names.keys() == checkpoint(TINY).shapes.keys()


def test_a_layout_permutes_axes_and_back():
    row = Weight("x.{i}", "layers.{i}.w", "a b c -> c a b")
    (slot,) = weight_table.slots([row], {"layers.w": (1, 4, 2, 3)}, num_layers=1)["layers.w"]
    array = np.arange(24).reshape(slot.shape)
    assert slot.shape == (2, 3, 4)
    assert array.transpose(slot.to_ours).shape == (4, 2, 3)
    np.testing.assert_array_equal(array.transpose(slot.to_ours).transpose(slot.to_hf), array)


@pytest.mark.parametrize("layout", ["a b -> a", "a a -> a a", "a b c -> c b a"])
def test_a_layout_that_is_no_permutation_is_an_error(layout):
    with pytest.raises(ValueError, match="not a permutation of 2 axes"):
        weight_table.slots([Weight("x", "w", layout)], {"w": (2, 2)}, num_layers=1)


@pytest.mark.parametrize("config", [TINY, UNROLLED], ids=["scanned", "unrolled"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(value, config):
    source = checkpoint(config)
    for name in ("model.norm.weight", "model.layers.1.mlp.up_proj.weight"):
        source.arrays[name] = source.arrays[name].copy()
        source.arrays[name].flat[-1] = value
    problems = problems_of(config, source, headline="cannot be used")
    assert set(problems[:-1]) == {
        "checkpoint tensor model.norm.weight holds NaN or infinite numbers",
        "checkpoint tensor model.layers.1.mlp.up_proj.weight holds NaN or infinite numbers",
    }
    assert "take a checkpoint from before it failed" in problems[-1]


def test_weights_that_overflow_in_the_dtype_of_the_model_are_refused():
    source = checkpoint(TINY)
    source.arrays["model.norm.weight"] = np.full(8, 3.4e38, np.float32)
    assert float(load(TINY, source).norm.scale[...][0]) == np.float32(3.4e38)
    config = dataclasses.replace(TINY, param_dtype="bfloat16")
    found = problems_of(config, source, headline="cannot be used")
    assert "model.norm.weight holds NaN or infinite numbers" in found[0]


@pytest.mark.parametrize("config", [TINY, UNROLLED], ids=["scanned", "unrolled"])
def test_more_layers_than_tensors_are_one_sentence(config):
    source = checkpoint(config)
    many = dataclasses.replace(config, num_layers=10_000)
    assert problems_of(many, source) == (
        "the config says 10000 layers, and the checkpoint has 30 tensors in all; correct the "
        "config, or fetch the other files",
    )


def test_more_experts_than_tensors_are_one_sentence():
    config = dataclasses.replace(TINY, num_experts=10_000, num_experts_per_tok=1)
    found = problems_of(config, checkpoint(TINY), qwen3_params.WEIGHTS)
    assert "3 layers of 10000 experts, and the checkpoint has 30 tensors" in found[0]


def test_a_long_list_is_cut_in_the_message_and_whole_in_the_error():
    problems = [f"tensor {i}" for i in range(60)]
    error = weight_table.WeightsError("no fit", problems)
    assert len(error.problems) == 60
    assert str(error).splitlines()[1:] == [*(f"  - {p}" for p in problems[:50]), "  - and 10 more"]
    (line,) = weight_table.collapsed([f"layers.{i}.w" for i in range(60)])
    assert line.endswith("48, 49 and 10 more")
