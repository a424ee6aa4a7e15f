"""Models that wait in host memory come back bit for bit, where they were."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.sft import toys
from tunix.models import lora
from tunix.sft import host_offload


class Several(nnx.Module):
    """Variables of several kinds and dtypes, one replicated, one split if there is a mesh."""

    def __init__(self):
        self.w = nnx.Param(jnp.arange(12.0, dtype=jnp.bfloat16).reshape(4, 3))
        self.count = nnx.BatchStat(jnp.asarray(3, jnp.int32))
        self.codes = nnx.Param(jnp.arange(-8, 8, dtype=jnp.int4))
        self.stream = nnx.RngStream(jax.random.key(5), tag="noise")


def live_bytes():
    gc.collect()
    return sum(x.nbytes for x in jax.live_arrays())


def test_arrays_return_with_their_bits_dtypes_and_shardings():
    model = Several()
    mesh = Mesh(np.array(jax.devices()[:1]), ("fsdp",))
    model.w.set_value(
        jax.device_put(model.w.get_value(), NamedSharding(mesh, PartitionSpec("fsdp")))
    )
    before = toys.leaves(nnx.state(model))
    shardings = jax.tree.map(lambda x: x.sharding, nnx.state(model))
    offload = host_offload.HostOffload(model)
    assert offload.nbytes == 0
    offload.offload()
    # The key and the counter of the random stream: the counter is an array as any other.
    assert offload.nbytes == 12 * 2 + 4 + 16 + 4
    offload.load()
    assert offload.nbytes == 0
    toys.assert_bit_identical(toys.leaves(nnx.state(model)), before)
    assert jax.tree.map(lambda x: x.sharding, nnx.state(model)) == shardings


def test_no_array_of_the_module_is_on_a_device_meanwhile():
    before = live_bytes()
    model = toys.tiny_decoder(num_layers=1)
    size = sum(x.nbytes for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert live_bytes() - before >= size
    offload = host_offload.HostOffload(model)
    offload.offload()
    assert offload.is_offloaded
    assert live_bytes() == before
    for _ in range(2):
        with offload.on_device():
            assert live_bytes() - before >= size
        assert live_bytes() == before


def test_a_module_that_is_away_cannot_be_used_by_mistake():
    model = toys.Linear(rngs=nnx.Rngs(0))
    offload = host_offload.HostOffload(model)
    want = model(jnp.ones(4))
    offload.offload()
    with pytest.raises(TypeError):
        model(jnp.ones(4))
    with offload.on_device() as there:
        assert there is model
        assert there(jnp.ones(4)) == want


def test_what_changed_on_the_device_is_what_comes_back():
    model = toys.Linear(rngs=nnx.Rngs(0))
    offload = host_offload.HostOffload(model)
    offload.offload()
    with offload.on_device():
        model.b.set_value(jnp.asarray(7.0))
    kept = offload._copies[("w",)][1]
    with offload.on_device():
        assert float(model.b[...]) == 7.0
    assert offload._copies[("w",)][1] is kept, "an array that did not change was copied again"


def test_a_nested_use_leaves_the_outer_one_alone_and_an_error_does_not_strand_the_arrays():
    model = toys.Linear(rngs=nnx.Rngs(0))
    offload = host_offload.HostOffload(model)
    with offload.on_device():
        pass
    assert not offload.is_offloaded, "it was on its device before"
    offload.offload()
    with offload.on_device():
        with offload.on_device():
            pass
        assert not offload.is_offloaded
    assert offload.is_offloaded
    with pytest.raises(ZeroDivisionError), offload.on_device():
        raise ZeroDivisionError
    assert offload.is_offloaded


def test_weights_that_another_model_shares_stay_with_it():
    policy = toys.tiny_decoder(num_layers=1)
    graphdef, state = nnx.split(policy)
    reference = nnx.merge(graphdef, jax.tree.map(lambda x: x, state))
    before = toys.leaves(state)
    assert reference.norm.scale.get_value() is policy.norm.scale.get_value()
    host_offload.HostOffload(reference).offload()
    toys.assert_bit_identical(toys.leaves(nnx.state(policy)), before)


def test_a_decoder_with_adapters_computes_the_same_bits():
    model = toys.tiny_decoder(num_layers=1)
    lora.apply_lora(model, lora.LoraConfig(rank=2, alpha=4.0), rngs=nnx.Rngs(1))
    tokens = jnp.asarray([[1, 2, 3, 4]])
    run = jax.jit(lambda state: nnx.merge(graphdef, state).hidden(tokens)[0])
    graphdef = nnx.graphdef(model)
    want = run(nnx.state(model))
    offload = host_offload.HostOffload(model)
    offload.offload()
    with offload.on_device():
        np.testing.assert_array_equal(run(nnx.state(model)), want)
