"""What is not in use waits in host memory, and comes back bit for bit."""

import gc
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.rl import helpers
from tests.sft import toys
from tunix.models import lora
from tunix.rl import rl_cluster
from tunix.rl.cluster import residency
from tunix.rl.objectives import critic
from tunix.rl.ppo import ppo_learner
from tunix.rl.rollout import base_rollout
from tunix.utils import config as config_lib

Role = rl_cluster.Role


class Owner:
    def __init__(self, size):
        self.arrays = {"x": jnp.arange(float(size)), "key": jax.random.key(size)}
        self.part = residency.ArrayPart(lambda: self.arrays, self.replace)

    def replace(self, arrays):
        self.arrays = arrays

    @property
    def is_away(self):
        return isinstance(self.arrays["x"], jax.ShapeDtypeStruct)


def live_bytes():
    gc.collect()
    return sum(x.nbytes for x in jax.live_arrays())


@pytest.fixture
def three():
    owners = {name: Owner(i + 3) for i, name in enumerate("abc")}
    needs = {"c": ("b",)}
    return owners, residency.Residency({n: o.part for n, o in owners.items()}, needs)


def away(owners):
    return "".join(name for name, owner in owners.items() if owner.is_away)


def test_a_part_that_is_used_sends_the_idle_ones_away(three):
    owners, parts = three
    assert away(owners) == ""
    with parts.use("a"):
        assert away(owners) == "bc"
    assert away(owners) == "bc", "nothing moves until something needs the room"
    with parts.use("b"):
        assert away(owners) == "ac"
        with parts.use("a"):
            assert away(owners) == "c", "what is in use stays"
    with parts.use("c"):
        assert away(owners) == "a", "c needs b"
    for i, owner in enumerate(owners.values()):
        owner.part.load() if owner.is_away else None
        np.testing.assert_array_equal(owner.arrays["x"], np.arange(i + 3.0))


def test_what_another_thread_uses_stays(three):
    owners, parts = three
    begun, go_on = threading.Event(), threading.Event()

    def work():
        with parts.use("a"):
            begun.set()
            go_on.wait()

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    with parts.use("b"):
        assert away(owners) == "c"
    go_on.set()
    thread.join()
    with parts.use("b"):
        assert away(owners) == "ac"


def test_new_arrays_take_the_place_of_those_that_are_away(three):
    owners, parts = three
    with parts.use("b"):
        pass
    with parts.use("b", replacing="a"):
        assert owners["a"].is_away
        owners["a"].arrays = {"x": jnp.ones(3), "key": jax.random.key(0)}
    with parts.use("b"), parts.use("a"):
        np.testing.assert_array_equal(owners["a"].arrays["x"], np.ones(3))


def test_an_error_leaves_nothing_in_use(three):
    owners, parts = three
    with pytest.raises(ZeroDivisionError), parts.use("a"):
        raise ZeroDivisionError
    with parts.use("b"):
        assert away(owners) == "ac"


def test_arrays_that_did_not_change_are_not_copied_again(three):
    owners, parts = three
    with parts.use("b"):
        copy = owners["a"].part._copies
    with parts.use("a"):
        pass
    with parts.use("b"):
        assert [x is y for x, y in zip(owners["a"].part._copies, copy, strict=True)] == [True] * 2


def make_cluster(actor, *, has_critic=False, reference=None, **settings):
    return rl_cluster.RLCluster(
        actor=actor,
        critic=critic.create_critic_model(actor) if has_critic else None,
        reference=reference,
        tokenizer=helpers.CharTokenizer(),
        cluster_config=rl_cluster.ClusterConfig(
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optax.adam(2e-2), eval_every_n_steps=1000, pbar_description=None
            ),
            rollout_config=helpers.ROLLOUT,
            **settings,
        ),
    )


def nbytes(tree):
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def test_offloading_frees_what_it_says():
    before = live_bytes()
    actor, reference = helpers.tiny_decoder(), helpers.tiny_decoder(1)
    size = nbytes(nnx.state(actor))
    cluster = make_cluster(actor, reference=reference, offload_to_cpu=True)
    others = live_bytes() - before - 5 * size  # counters and the like
    assert 0 <= others < 500  # weights, two moments, the rollout's copy and the reference
    want = toys.leaves(cluster.actor_trainer.state)
    sampled = toys.leaves(cluster.rollout.weights())
    batch = helpers.one_batch(helpers.make_groups([[1.0, -1.0]]))
    room = others + nbytes(batch) + 1000

    cluster.get_ref_per_token_logps(batch)
    assert size <= live_bytes() - before <= size + room, "more than the reference is there"
    cluster.get_old_per_token_logps(batch)
    assert size <= live_bytes() - before <= size + room, "more than the actor is there"
    with cluster.on_device(Role.ROLLOUT):
        assert size <= live_bytes() - before <= size + room, "more than the rollout is there"
        toys.assert_bit_identical(toys.leaves(cluster.rollout.weights()), sampled)
    cluster.generate(["AB"])
    cluster.get_old_per_token_logps(batch)
    assert live_bytes() - before <= size + room, "the cache is still there"
    cluster.sync_weights()
    with cluster._residency.use("actor", "actor optimizer"):
        assert live_bytes() - before <= 3 * size + room
        toys.assert_bit_identical(toys.leaves(cluster.actor_trainer.state), want)


def trained(is_ppo, *, is_lora, **settings):
    actor = helpers.tiny_decoder()
    if is_lora:
        lora.apply_lora(actor, lora.LoraConfig(rank=2, alpha=8.0), rngs=nnx.Rngs(1))
    cluster = make_cluster(
        actor,
        has_critic=is_ppo,
        reference=None if is_lora else helpers.tiny_decoder(1),
        **settings,
    )
    if is_ppo:
        learner = ppo_learner.PPOLearner(
            cluster,
            ppo_learner.PPOConfig(num_generations=2, beta=0.1),
            helpers.share_of_odd_characters,
        )
    else:
        learner = helpers.make_learner(cluster, num_generations=2, beta=0.1)
    learner.train([{"prompts": helpers.PROMPTS}] * 2)
    cluster.close()
    trainers = [cluster.actor_trainer, *([cluster.critic_trainer] if is_ppo else [])]
    return [toys.leaves([one.state.params, one.frozen()]) for one in trainers], cluster


@pytest.mark.parametrize(
    ("is_ppo", "is_lora"),
    [
        pytest.param(False, False, id="grpo"),
        pytest.param(
            True, True, id="ppo with a critic that shares the base", marks=pytest.mark.slow
        ),
        pytest.param(True, False, id="ppo", marks=pytest.mark.slow),
    ],
)
def test_a_run_whose_models_take_turns_has_the_bits_of_one_whose_models_stay(is_ppo, is_lora):
    (want, _), (found, cluster) = (
        trained(is_ppo, is_lora=is_lora, offload_to_cpu=offload, verify_weight_sync=True)
        for offload in (False, True)
    )
    for one, other in zip(want, found, strict=True):
        toys.assert_bit_identical(other, one)
    assert "rollout" in cluster._residency.away
    if is_ppo and is_lora:
        backbone = cluster.critic_trainer.model.backbone
        shared = cluster.actor_trainer.model.embed_tokens.w.get_value()
        assert backbone.embed_tokens.w.get_value() is shared, "the base model is there twice"


def test_an_engine_that_cannot_do_what_is_asked_says_so_at_once():
    class Fixed(base_rollout.BaseRollout):
        def __init__(self, *, model, tokenizer, cache_size, max_slots):
            pass

        def generate(self, prompts, rollout_config, *, key, num_samples=1):
            raise NotImplementedError

        def update_params(self, params):
            pass

    with pytest.raises(config_lib.ConfigError) as caught:
        make_cluster(
            helpers.tiny_decoder(),
            rollout_engine=Fixed,
            offload_to_cpu=True,
            verify_weight_sync=True,
        )
    assert "Fixed cannot leave its devices" in str(caught.value)
    assert "Fixed does not show its weights" in str(caught.value)
