"""Adapters: what they change, what they leave alone, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.transformer import decoder_test
from tunix.generate import weight_sync
from tunix.models import lora
from tunix.models.transformer import adapter as adapter_lib
from tunix.models.transformer import decoder as decoder_lib
from tunix.models.transformer import layout, sharding
from tunix.sft import losses
from tunix.sft.loop import train_state
from tunix.utils import config as utils_config

TOKENS = decoder_test.tokens_of(2, 7)


def attach(model, *, name="default", seed=1, **settings):
    """Attach an adapter and make all of it random."""
    config = lora.LoraConfig(**({"rank": 3, "alpha": 6.0} | settings))
    lora.apply_lora(model, config, rngs=nnx.Rngs(seed), name=name)
    rng = np.random.default_rng(seed)
    for _, module in lora.iter_projections(model):
        for variable in module.adapter_arrays().values():
            variable[...] += 0.1 * rng.normal(size=variable.shape)
    return model


def plain():
    return decoder_lib.Decoder(decoder_test.TINY, rngs=nnx.Rngs(0))


def adapted(pattern=lora.ALL_LINEAR, *, scanned=True, nonzero=True):
    model = decoder_lib.Decoder(decoder_test.TINY, rngs=nnx.Rngs(0))
    model = model if scanned else layout.unroll_layers(model)
    config = lora.LoraConfig(rank=3, alpha=6.0, module_path=pattern)
    lora.apply_lora(model, config, rngs=nnx.Rngs(1))
    if nonzero:
        for _, module in lora.iter_projections(model):
            if module.adapter is not None:
                key = jax.random.key(module.lora_b.size)
                module.lora_b[...] = 0.1 * jax.random.normal(key, module.lora_b.shape)
    return model


def test_fresh_adapters_do_not_change_the_model():
    base = decoder_lib.Decoder(decoder_test.TINY, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(adapted(nonzero=False)(TOKENS)[0], base(TOKENS)[0])


def test_switched_off_adapters_give_the_base_model_exactly():
    base = decoder_lib.Decoder(decoder_test.TINY, rngs=nnx.Rngs(0))
    model = adapted()
    assert np.abs(model(TOKENS)[0] - base(TOKENS)[0]).max() > 1e-3
    np.testing.assert_array_equal(model(TOKENS, adapters=False)[0], base(TOKENS)[0])


@pytest.mark.parametrize("scanned", [True, False], ids=["scanned", "unrolled"])
def test_merging_keeps_the_function_and_removes_the_adapters(scanned):
    model = adapted(scanned=scanned)
    expected = model(TOKENS)[0]
    merged = lora.merge_lora(model)
    assert not lora.is_lora_enabled(merged)
    np.testing.assert_allclose(merged(TOKENS)[0], expected, atol=2e-6, rtol=2e-6)


def test_an_adapted_model_unrolls_with_its_adapters():
    model = adapted()
    np.testing.assert_allclose(
        layout.unroll_layers(model)(TOKENS)[0], model(TOKENS)[0], atol=2e-6, rtol=2e-6
    )


def test_one_projection_computes_base_plus_scaled_low_rank_product():
    module = adapted(scanned=False).layers[0].mlp.up_proj
    x = jax.random.normal(jax.random.key(0), (5, 32))
    w, a, b = (np.asarray(p[...], np.float64) for p in (module.w, module.lora_a, module.lora_b))
    expected = x @ w + 2.0 * (x @ a) @ b  # alpha / rank = 2
    np.testing.assert_allclose(module(x), expected, atol=1e-5)


def test_only_adapters_are_lora_parameters():
    state = nnx.to_flat_state(nnx.state(adapted(".*q_proj|.*v_proj"), nnx.LoRAParam))
    names = {".".join(map(str, path)) for path, _ in state}
    expected = {f"layers.self_attn.{p}_proj.lora_{x}" for p in ("q", "v") for x in ("a", "b")}
    assert names == expected


def test_a_pattern_that_matches_nothing_leaves_the_model_alone():
    model = decoder_lib.Decoder(decoder_test.TINY, rngs=nnx.Rngs(0))
    with pytest.raises(utils_config.ConfigError):
        attach(model, module_path=".*q_proj|.*gate_prj")
    assert not lora.is_lora_enabled(model)


def test_gradients_reach_only_the_adapters():
    model = adapted(nonzero=False)
    graphdef, adapters, rest = nnx.split(model, nnx.LoRAParam, ...)

    def loss(adapters):
        return (nnx.merge(graphdef, adapters, rest)(TOKENS)[0] ** 2).mean()

    grads = jax.grad(loss)(adapters)
    q = grads["layers"]["self_attn"]["q_proj"]
    assert jnp.abs(q["lora_b"][...]).max() > 0  # b starts at zero and moves first
    assert jnp.abs(q["lora_a"][...]).max() == 0


def test_rank_stabilised_adapters_are_scaled_by_the_root_of_their_rank():
    module = attach(plain(), use_rslora=True, rank=4, alpha=6.0).layers.mlp.up_proj
    assert module.adapter.scale(4) == 3.0
    w, a, b = (np.asarray(p[0], np.float64) for p in (module.w, module.lora_a, module.lora_b))
    np.testing.assert_allclose(module.merged_weight()[0], w + 3.0 * a @ b, atol=1e-6)


def dora_module(dropout=0.0):
    model = layout.unroll_layers(plain())
    return attach(model, use_dora=True, dropout=dropout).layers[1].mlp.up_proj


def test_fresh_dora_is_the_base():
    model = plain()
    config = lora.LoraConfig(rank=2, alpha=4.0, use_dora=True)
    lora.apply_lora(model, config, rngs=nnx.Rngs(1))
    np.testing.assert_allclose(model(TOKENS)[0], plain()(TOKENS)[0], atol=1e-6)


def test_dora_gives_columns_their_length():
    module = dora_module()
    w, a, b, m = (
        np.asarray(p[...], np.float64)
        for p in (module.w, module.lora_a, module.lora_b, module.lora_magnitude)
    )
    direction = w + 2.0 * a @ b
    expected = m * direction / np.linalg.norm(direction, axis=0)
    x = jax.random.normal(jax.random.key(0), (5, 32))
    np.testing.assert_allclose(module(x), x @ expected, atol=1e-5)
    np.testing.assert_allclose(module.merged_weight(), expected, atol=1e-6)
    lengths = np.linalg.norm(module.merged_weight(), axis=0)
    np.testing.assert_allclose(lengths, np.abs(m), rtol=1e-5)


def test_the_length_that_dora_divides_by_is_a_constant_to_the_gradient():
    module = dora_module()
    x = jax.random.normal(jax.random.key(0), (5, 32))
    a, b, m = (module.adapter_arrays()[n][...] for n in ("lora_a", "lora_b", "lora_magnitude"))
    w = module.w[...]
    norm = jnp.linalg.norm(w + 2.0 * a @ b, axis=0)  # taken outside: constant by construction

    def by_hand(a, b, m):
        return ((x @ (w + 2.0 * a @ b) * (m / norm)) ** 2).sum()

    graphdef, adapters, rest = nnx.split(module, nnx.LoRAParam, ...)

    def ours(adapters):
        return (nnx.merge(graphdef, adapters, rest)(x) ** 2).sum()

    grads = jax.grad(ours)(adapters)
    expected = jax.grad(by_hand, argnums=(0, 1, 2))(a, b, m)
    for name, value in zip(("lora_a", "lora_b", "lora_magnitude"), expected, strict=True):
        np.testing.assert_allclose(grads[name][...], value, rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_dropout_drops_the_adapters_input_and_nothing_else(use_dora):
    model = layout.unroll_layers(plain())
    module = attach(model, dropout=0.5, use_dora=use_dora).layers[0].mlp.up_proj
    use = adapter_lib.AdapterUse(dropout_key=jax.random.key(7))
    x = jax.random.normal(jax.random.key(0), (6, 32))
    dropped = use.dropped(x, module.adapter)
    kept = np.asarray(dropped != 0)
    assert 0.3 < kept.mean() < 0.7
    np.testing.assert_allclose(np.asarray(dropped)[kept], 2.0 * np.asarray(x)[kept])
    w = module.w[...]
    update = 2.0 * dropped @ module.lora_a[...] @ module.lora_b[...]
    expected = x @ w + update
    if use_dora:  # peft rescales only what dropout spares of the base
        direction = w + 2.0 * module.lora_a[...] @ module.lora_b[...]
        ratio = module.lora_magnitude[...] / jnp.linalg.norm(direction, axis=0)
        expected = x @ w + (ratio - 1) * (dropped @ w) + ratio * update
    np.testing.assert_allclose(module(x, adapters=use), expected, atol=1e-5)


@pytest.mark.parametrize("scanned", [True, False], ids=["scanned", "unrolled"])
def test_layers_and_projections_drop_different_inputs_and_both_layouts_the_same(scanned):
    model = attach(plain(), dropout=0.5)
    key = jax.random.key(3)
    expected = model.hidden(TOKENS, dropout_key=key)[0]
    if not scanned:
        model = layout.unroll_layers(model)
        np.testing.assert_allclose(model.hidden(TOKENS, dropout_key=key)[0], expected, atol=1e-5)
    again = model.hidden(TOKENS, dropout_key=jax.random.key(4))[0]
    assert np.abs(again - expected).max() > 1e-3
    streams = {m.adapter.stream for _, m in lora.iter_projections(model)}
    assert len(streams) == 7


def test_keys_of_dropout_never_repeat_and_evaluation_has_none():
    model = attach(plain(), dropout=0.5)
    first, second = model.dropout_key(), model.dropout_key()
    assert not (jax.random.key_data(first) == jax.random.key_data(second)).all()
    model.eval()
    assert model.dropout_key() is None
    assert plain().dropout_key() is None


def test_dropout_is_part_of_the_state_of_training_and_of_its_loss_only():
    model = attach(plain(), dropout=0.5, module_path="up_proj")
    _, _, variables = train_state.split_model(model)
    assert set(variables) == {"adapter_dropout.stream.key", "adapter_dropout.stream.count"}
    batch = {"input_tokens": TOKENS, "input_mask": jnp.ones(TOKENS.shape)}
    training = [losses.next_token_loss(model, **batch).loss_sum for _ in range(2)]
    assert training[0] != training[1]
    assert model.adapter_dropout.stream.count[...] == 2
    model.eval()
    assert len({float(losses.next_token_loss(model, **batch).loss_sum) for _ in range(2)}) == 1
    sampled = weight_sync.WeightSync(model)(model).state
    assert sampled["adapter_dropout"]["stream"]["count"][...] == 2
    assert lora.merge_lora(model).adapter_dropout is None


def test_adapters_are_switched_by_name_and_keep_their_weights():
    first = attach(plain(), seed=1)(TOKENS)[0]
    second = attach(plain(), seed=2, rank=2, module_path="q_proj|down_proj")(TOKENS)[0]
    model = attach(plain(), seed=1, name="first")
    attach(model, seed=2, rank=2, module_path="q_proj|down_proj", name="second")
    assert lora.adapter_names(model) == ("first", "second")
    assert lora.active_adapter(model) == "second"
    np.testing.assert_array_equal(model(TOKENS)[0], second)
    lora.set_adapter(model, "first")
    np.testing.assert_array_equal(model(TOKENS)[0], first)
    np.testing.assert_array_equal(layout.unroll_layers(model)(TOKENS)[0][0, 0, 0], first[0, 0, 0])
    lora.set_adapter(model, "second")
    np.testing.assert_array_equal(model(TOKENS)[0], second)
    lora.remove_adapter(model, "second")
    assert lora.active_adapter(model) is None
    np.testing.assert_array_equal(model(TOKENS)[0], plain()(TOKENS)[0])
    assert lora.adapter_names(model) == ("first",)


def test_only_the_adapter_in_use_is_a_lora_parameter():
    model = attach(attach(plain(), name="first"), name="second", module_path="q_proj")
    names = {".".join(map(str, p)) for p, _ in nnx.to_flat_state(nnx.state(model, nnx.LoRAParam))}
    assert names == {f"layers.self_attn.q_proj.lora_{x}" for x in "ab"}
    _, params, variables = train_state.split_model(model)
    assert set(params) == names
    assert not variables


def test_unknown_and_repeated_adapter_names_are_refused():
    model = attach(plain(), name="french")
    with pytest.raises(lora.AdapterError, match="did you mean 'french'"):
        lora.set_adapter(model, "frensh")
    with pytest.raises(lora.AdapterError, match="already has an adapter 'french'"):
        attach(model, name="french")


def test_adapters_live_where_their_base_lives():
    model = plain()
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"))
    sharding.shard_model(model, mesh)
    attach_config = lora.LoraConfig(rank=2, alpha=2.0, use_dora=True)
    lora.apply_lora(model, attach_config, rngs=nnx.Rngs(0))
    module = model.layers.mlp.up_proj
    spec = jax.sharding.PartitionSpec
    assert module.w[...].sharding.spec == spec(None, "fsdp", "tp")
    assert module.lora_a[...].sharding.spec == spec(None, "fsdp", None)
    assert module.lora_b[...].sharding.spec == spec(None, None, "tp")
    assert module.lora_magnitude[...].sharding.spec == spec(None, "tp")
    shardings = sharding.state_shardings(nnx.state(model), mesh)
    placed = dict(nnx.to_flat_state(shardings))["layers", "mlp", "up_proj", "lora_b"]
    assert placed.get_raw_value() == module.lora_b[...].sharding
