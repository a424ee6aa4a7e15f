"""qwix adapts and quantises a decoder whose layers are unrolled, not rematerialised and exact."""

import dataclasses

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from flax import nnx

from tests.models.transformer import decoder_test
from tests.sft import toys
from tunix.generate import weight_sync
from tunix.models.transformer import decoder as decoder_lib
from tunix.sft import losses, peft_trainer

qwix = pytest.importorskip("qwix")
pytestmark = pytest.mark.slow

TOKENS = decoder_test.tokens_of(2, 7)
PATTERN = ".*q_proj|.*k_proj|.*v_proj|.*gate_proj"


@pytest.fixture
def unchecked_shapes():
    """qwix puts objects of its own in place of quantised weights; only tests check their type."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def build():
    config = dataclasses.replace(
        decoder_test.TINY, num_layers=2, scan_layers=False, remat="none", precision="exact"
    )
    return decoder_lib.Decoder(config, rngs=nnx.Rngs(0))


def adapted(methods=("hidden",), **quantisation):
    model = build()
    provider = qwix.LoraProvider(module_path=PATTERN, rank=2, alpha=4.0, **quantisation)
    return qwix.apply_lora_to_model(
        model, provider, methods=methods, **model.get_model_input(), rngs=nnx.Rngs(1)
    )


def lora_names(model):
    state = nnx.to_flat_state(nnx.state(model, nnx.LoRAParam))
    return {".".join(map(str, path)) for path, _ in state}


def test_every_matching_projection_gets_an_adapter_that_changes_nothing_yet():
    model = adapted()
    expected = {
        f"layers.{i}.{module}.w_lora_{x}"
        for i in range(2)
        for module in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj")
        for x in "ab"
    }
    assert lora_names(model) == expected
    np.testing.assert_array_equal(model(TOKENS)[0], build()(TOKENS)[0])


def test_a_model_whose_call_alone_is_wrapped_is_trained_through_its_call():
    """qwix's default: the slower way through all logits, with the same gradients."""
    batch = jax.tree.map(jnp.asarray, toys.token_batch(2, 8))

    def gradients(methods):
        model = adapted(methods=methods)
        state = nnx.state(model, nnx.LoRAParam)
        nnx.update(model, jax.tree.map(lambda x: x + 0.1, state))

        def loss(model):
            return losses.next_token_loss(model, **batch).loss_sum

        return nnx.grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam))(model)

    by_call, by_hidden = gradients(("__call__",)), gradients(("hidden",))
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(by_call)) > 1e-3
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), by_call, by_hidden
    )
    with pytest.raises(TypeError, match=r"methods=\('hidden',\)"):
        weight_sync.WeightSync(adapted(methods=("__call__",)))


def test_the_trainer_trains_them_alone():
    model = adapted()
    base = np.array(model.layers[0].self_attn.q_proj.w[...])
    config = peft_trainer.TrainingConfig(eval_every_n_steps=9, max_steps=3, pbar_description=None)
    trainer = peft_trainer.PeftTrainer(model, optax.adam(1e-2), config)
    assert set(trainer.state.params) == lora_names(model)
    trainer.train([toys.token_batch(2, 8)] * 3)
    history = trainer.metrics_logger.get_metric_history("", "loss", "train")
    assert history[-1] < history[0]
    np.testing.assert_array_equal(model.layers[0].self_attn.q_proj.w[...], base)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("kind", ["nf4", "int8", "int4"])
def test_quantised_bases_have_adapters_with_gradients(kind):
    model = adapted(weight_qtype=kind, tile_size=16)
    error = np.abs(model(TOKENS)[0] - build()(TOKENS)[0]).max()
    assert 0 < error < {"nf4": 0.05, "int8": 0.003, "int4": 0.05}[kind]

    def loss(model):
        return (model(TOKENS)[0] ** 2).mean()

    grads = nnx.grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam))(model)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads)) > 1e-3


@pytest.mark.usefixtures("unchecked_shapes")
def test_post_training_quantisation():
    model = build()
    provider = qwix.PtqProvider([qwix.QuantizationRule(module_path=".*mlp.*", weight_qtype="int8")])
    quantised = qwix.quantize_model(model, provider, **model.get_model_input())
    error = np.abs(quantised(TOKENS)[0] - build()(TOKENS)[0]).max()
    assert 0 < error < 0.003
