"""Quantised bases: their function, their adapters, and every way they travel."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.models.transformer import decoder_test
from tests.sft import toys
from tunix.generate import engine, sampling_params, weight_sync
from tunix.models import lora, quantized
from tunix.models.transformer import decoder as decoder_lib
from tunix.models.transformer import layout, sharding
from tunix.sft import checkpoint_manager, peft_trainer
from tunix.sft.loop import train_state
from tunix.utils import config as utils_config

TOKENS = decoder_test.tokens_of(2, 7)
BLOCK = {"nf4": 16, "int4": 16, "int8": None}


TINY = dataclasses.replace(decoder_test.TINY, num_layers=2)


def plain():
    return decoder_lib.Decoder(TINY, rngs=nnx.Rngs(0))


@nnx.jit
def logits(model):
    return model(TOKENS)[0]


def build(kind="nf4", *, use_dora=False, with_adapter=True):
    """A quantised decoder with a random adapter on every projection."""
    model = quantized.quantize_model(plain(), kind, block=BLOCK[kind])
    if with_adapter:
        config = lora.LoraConfig(rank=2, alpha=4.0, use_dora=use_dora)
        lora.apply_lora(model, config, rngs=nnx.Rngs(1))
        rng = np.random.default_rng(0)
        for _, module in lora.iter_projections(model):
            for variable in module.adapter_arrays().values():
                variable[...] += 0.05 * rng.normal(size=variable.shape)
    return model


@pytest.mark.parametrize(
    ("kind", "scanned"), [("nf4", True), ("nf4", False), ("int8", True), ("int4", True)]
)
def test_a_quantised_model_is_the_model_of_its_dequantised_weights(kind, scanned):
    model = build(kind, with_adapter=False)
    dense = quantized.dequantize_model(build(kind, with_adapter=False))
    assert quantized.is_quantized(model)
    assert not quantized.is_quantized(dense)
    model = model if scanned else layout.unroll_layers(model)
    np.testing.assert_allclose(logits(model), logits(dense), atol=1e-6)
    w, original = dense.layers.mlp.up_proj.w[...], plain().layers.mlp.up_proj.w[...]
    assert 0 < np.abs(w - original).max() < 0.02


@pytest.mark.parametrize(
    ("kind", "use_dora"), [("nf4", False), ("nf4", True), ("int8", False), ("int4", False)]
)
def test_merging_is_the_same_before_and_after_dequantising(kind, use_dora):
    expected = logits(build(kind, use_dora=use_dora))
    merged = lora.merge_lora(build(kind, use_dora=use_dora))
    assert not quantized.is_quantized(merged)
    assert not lora.is_lora_enabled(merged)
    np.testing.assert_allclose(logits(merged), expected, atol=2e-5)
    dense = quantized.dequantize_model(build(kind, use_dora=use_dora))
    other = lora.merge_lora(dense)
    for (_, one), (_, two) in zip(
        lora.iter_projections(merged), lora.iter_projections(other), strict=True
    ):
        np.testing.assert_array_equal(one.w[...], two.w[...])


def test_stacking_undoes_unrolling():
    model = build()
    again = layout.stack_layers(layout.unroll_layers(model))
    toys.assert_bit_identical(nnx.state(again), nnx.state(model))


def test_only_the_adapter_is_trained_and_codes_are_carried_along():
    model = build()
    before = {p: np.array(v[...]) for p, v in nnx.to_flat_state(nnx.state(model))}
    split, params, variables = train_state.split_model(model)
    assert {name.rsplit(".", 1)[-1] for name in params} == {"lora_a", "lora_b"}
    assert not variables
    assert "layers.mlp.up_proj.w.codes" in split.frozen
    config = peft_trainer.TrainingConfig(eval_every_n_steps=10, max_steps=3, pbar_description=None)
    trainer = peft_trainer.PeftTrainer(model, optax.adam(1e-2), config)
    trainer.train([toys.token_batch(2, 8)] * 3)
    losses = trainer.metrics_logger.get_metric_history("", "loss", "train")
    assert losses[-1] < losses[0]
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        assert ("lora" in path[-1]) != np.array_equal(before[path], variable[...]), path


def test_gradients_of_adapters_are_those_on_the_dequantised_base():
    def grads(model):
        graphdef, adapters, rest = nnx.split(model, nnx.LoRAParam, ...)
        loss = jax.jit(lambda a: (nnx.merge(graphdef, a, rest)(TOKENS)[0] ** 2).sum())
        return jax.grad(loss)(adapters)

    ours, dense = grads(build()), grads(quantized.dequantize_model(build()))
    for one, two in zip(jax.tree.leaves(ours), jax.tree.leaves(dense), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


def test_a_sampler_keeps_the_base_quantised_and_agrees_with_the_trainer():
    model = build("nf4", use_dora=True)
    weights = weight_sync.WeightSync(model)(model)
    flat = {".".join(map(str, p)): leaf[...] for p, leaf in nnx.to_flat_state(weights.state)}
    assert flat["layers.1.mlp.up_proj.w.codes"].dtype == jnp.uint8
    params = sampling_params.SamplingParams(temperature=1.0, max_new_tokens=6)
    ours = engine.Engine(model, max_slots=2, cache_size=16)
    one = ours.generate([[3, 5, 7]], params, key=jax.random.key(0))[0]
    ids = jnp.asarray([[3, 5, 7, *one.token_ids]])
    logps = jax.nn.log_softmax(model(ids)[0][0])
    expected = [logps[2 + i, token] for i, token in enumerate(one.token_ids)]
    np.testing.assert_allclose(one.logps, expected, atol=1e-5)


def test_a_sampler_refuses_an_adapter_of_another_scale():
    model = build()
    sync = weight_sync.WeightSync(model)
    lora.remove_adapter(model, "default")
    lora.apply_lora(model, lora.LoraConfig(rank=2, alpha=8.0), rngs=nnx.Rngs(1))
    with pytest.raises(weight_sync.WeightMismatchError, match=r"alpha=8\.0"):
        sync(model)


def test_checkpoints_of_a_quantised_model_restore_bit_for_bit(tmp_path):
    model, other = build(), build()
    for _, module in lora.iter_projections(other):
        module.w.codes[...] = jnp.zeros_like(module.w.codes[...])
        module.lora_b[...] = jnp.zeros_like(module.lora_b[...])
    manager = checkpoint_manager.CheckpointManager(tmp_path)
    manager.save(1, model, force=True)
    manager.wait_until_finished()
    manager.maybe_restore(other)
    manager.close()
    toys.assert_bit_identical(nnx.state(other), nnx.state(model))


def test_codes_live_where_the_matrix_lived():
    model = plain()
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"))
    sharding.shard_model(model, mesh)
    quantized.quantize_model(model, "nf4", block=16)
    w, spec = model.layers.mlp.up_proj.w, jax.sharding.PartitionSpec
    assert w.codes[...].sharding.spec == spec(None, "fsdp", "tp")
    assert w.scales[...].sharding.spec == spec(None, None, "tp")
    shardings = dict(nnx.to_flat_state(sharding.state_shardings(nnx.state(model), mesh)))
    for name in ("codes", "scales", "scale_blocks", "scale_offset"):
        expected = shardings["layers", "mlp", "up_proj", "w", name].get_raw_value()
        assert getattr(w, name)[...].sharding.is_equivalent_to(expected, getattr(w, name).ndim)


def test_only_the_projections_that_are_named_are_quantised():
    model = quantized.quantize_model(plain(), "int8", module_path="q_proj|up_proj")
    kinds = {
        path.rsplit(".", 1)[-1]: isinstance(module.w, nnx.Param)
        for path, module in lora.iter_projections(model)
    }
    assert sorted(name for name, is_dense in kinds.items() if not is_dense) == ["q_proj", "up_proj"]


def test_matrices_that_do_not_divide_and_unknown_kinds_are_all_named():
    with pytest.raises(utils_config.ConfigError) as error:
        quantized.quantize_model(plain(), "nf4", block=32)
    assert error.value.problems == (
        "layers.mlp.down_proj (2, 48, 32): 48 rows are not a multiple of the block size 32",
    )
    with pytest.raises(utils_config.ConfigError, match="did you mean 'nf4'"):
        quantized.quantize_model(plain(), "nf5")
