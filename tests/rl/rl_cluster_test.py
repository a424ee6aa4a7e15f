import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests import virtual_devices
from tests.rl import helpers
from tunix.generate import completion, requests
from tunix.models import lora
from tunix.rl import rl_cluster
from tunix.rl.cluster import cluster_build
from tunix.rl.rollout import base_rollout
from tunix.utils import config as config_lib

Mode, Role = rl_cluster.Mode, rl_cluster.Role


@pytest.fixture(scope="module")
def cluster():
    return helpers.make_cluster()


def config_with(**changes):
    training = rl_cluster.RLTrainingConfig(
        actor_optimizer=optax.sgd(0.1), eval_every_n_steps=1, **changes.pop("training", {})
    )
    settings = {"training_config": training, "rollout_config": helpers.ROLLOUT, **changes}
    return rl_cluster.ClusterConfig(**settings)


def test_no_two_calls_draw_alike(cluster):
    first, second = (cluster.generate(helpers.PROMPTS, num_samples=2).tokens for _ in range(2))
    assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_equal_keys_draw_alike(cluster):
    key = cluster.sampling_key(Mode.TRAIN, 3)
    first, second = (cluster.generate(helpers.PROMPTS, key=key).tokens for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_keys_differ_between_steps_modes_calls_and_seeds(cluster):
    other = helpers.make_cluster(rollout=dataclasses.replace(helpers.ROLLOUT, seed=1))
    keys = [
        cluster.sampling_key(Mode.TRAIN, 0),
        cluster.sampling_key(Mode.TRAIN, 1),
        cluster.sampling_key(Mode.EVAL, 0),
        cluster.sampling_key(Mode.EVAL, 0, call=1),
        other.sampling_key(Mode.TRAIN, 0),
    ]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == len(keys)


def test_samples_of_a_prompt_stand_together(cluster):
    output = cluster.generate(["AB", "C"], num_samples=3)
    assert output.prompts == ["AB", "C"]
    assert len(output.text) == len(output.tokens) == len(output.logprobs) == 6
    np.testing.assert_array_equal(output.prompt_tokens[0], helpers.CharTokenizer().encode("AB"))


def test_logprobs_are_returned_when_asked_for(cluster):
    config = dataclasses.replace(helpers.ROLLOUT, return_logprobs=False)
    assert cluster.generate(["A"], rollout_config=config).logprobs is None


def test_the_token_that_ends_a_completion_is_a_token_but_no_text(cluster):
    greedy = dataclasses.replace(helpers.ROLLOUT, temperature=0.0)
    first = int(cluster.generate(["A"], rollout_config=greedy).tokens[0][0])
    stopping = dataclasses.replace(greedy, eos_tokens=[first])
    output = cluster.generate(["A"], rollout_config=stopping)
    assert output.completions[0].finish_reason == "stop"
    np.testing.assert_array_equal(output.tokens[0], [first])
    assert output.text == [""]


def test_every_prompt_that_is_too_long_is_named_before_anything_runs(cluster):
    with pytest.raises(requests.PromptError) as caught:
        cluster.generate(["A" * 9, "B", "", "C" * 10])
    message = str(caught.value)
    assert "prompt 0 has 9 tokens, max_prompt_length allows 8" in message
    assert "prompt 2 is empty" in message
    assert "prompt 3 has 10 tokens" in message


def test_synced_weights_are_those_that_are_sampled_from():
    cluster = helpers.make_cluster()
    greedy = dataclasses.replace(helpers.ROLLOUT, temperature=0.0)
    before = cluster.generate(["AB"], rollout_config=greedy).tokens[0]
    model = cluster.actor_trainer.model
    # A residual stream that always points at token 7: the tied head then always picks it.
    table = np.zeros(model.embed_tokens.w.shape, np.float32)
    table[:, 0] = 1.0
    table[7, 0] = 5.0
    model.embed_tokens.w[...] = jnp.asarray(table)
    for _, projection in lora.iter_projections(model):
        projection.w[...] = jnp.zeros_like(projection.w[...])
    np.testing.assert_array_equal(cluster.generate(["AB"], rollout_config=greedy).tokens[0], before)
    cluster.sync_weights()
    after = cluster.generate(["AB"], rollout_config=greedy).tokens[0]
    np.testing.assert_array_equal(after, [7] * 6)


def test_a_lora_actor_without_its_adapters_is_the_reference():
    actor = helpers.tiny_decoder()
    batch = helpers.one_batch(helpers.make_groups([[1.0, -1.0]]))
    alone = helpers.make_cluster(helpers.tiny_decoder(1), reference=helpers.tiny_decoder())
    base = alone.get_ref_per_token_logps(batch)
    lora.apply_lora(actor, lora.LoraConfig(rank=2, alpha=8.0), rngs=nnx.Rngs(1))
    cluster = helpers.make_cluster(actor)
    assert cluster.has_reference
    np.testing.assert_array_equal(cluster.get_ref_per_token_logps(batch), base)
    for _, projection in lora.iter_projections(cluster.actor_trainer.model):
        projection.lora_b[...] = jnp.ones_like(projection.lora_b[...])
    np.testing.assert_array_equal(cluster.get_ref_per_token_logps(batch), base)


def test_a_fully_trained_actor_has_no_reference_of_its_own(cluster):
    assert not cluster.has_reference
    batch = helpers.one_batch(helpers.make_groups([[1.0, -1.0]]))
    with pytest.raises(ValueError, match="no reference policy"):
        cluster.get_ref_per_token_logps(batch)


def test_the_actor_cannot_be_its_own_reference():
    actor = helpers.tiny_decoder()
    with pytest.raises(config_lib.ConfigError, match="would change with it"):
        helpers.make_cluster(actor, reference=actor)


def test_buffered_metrics_are_reduced_and_logged_once():
    cluster = helpers.make_cluster()
    cluster.buffer_metrics({"a": 1.0, "b": (5.0, np.max)})
    cluster.buffer_metrics({"a": 3.0, "b": (4.0, np.max)})
    cluster.log_metrics(Mode.TRAIN, step=1)
    assert helpers.history(cluster, "a").tolist() == [2.0]
    assert helpers.history(cluster, "b").tolist() == [5.0]
    cluster.log_metrics(Mode.TRAIN, step=2)
    assert helpers.history(cluster, "a").tolist() == [2.0]


class EchoRollout(base_rollout.BaseRollout):
    """An engine of one's own: repeats the prompt."""

    def __init__(self, *, model, tokenizer, cache_size, max_slots):
        self.sizes = (cache_size, max_slots)

    def generate(self, prompts, rollout_config, *, key, num_samples=1):
        return [
            completion.Completion(
                token_ids=np.asarray(prompt, np.int32),
                logps=np.zeros(len(prompt), np.float32),
                sampled_logps=np.zeros(len(prompt), np.float32),
                finish_reason="length",
            )
            for prompt in prompts
            for _ in range(num_samples)
        ]

    def update_params(self, params):
        pass


@pytest.mark.parametrize(("size", "slots"), [(5, 5), (None, 32)])
def test_an_engine_of_ones_own_takes_the_place_of_the_native_one(size, slots):
    cluster = rl_cluster.RLCluster(
        actor=helpers.tiny_decoder(),
        tokenizer=helpers.CharTokenizer(),
        cluster_config=config_with(
            rollout_engine=EchoRollout, training={"rollout_micro_batch_size": size}
        ),
    )
    assert cluster.rollout.sizes == (14, slots)
    assert cluster.generate(["AB"], num_samples=2).text == ["AB", "AB"]


def test_the_native_engine_wants_a_decoder():
    class Other(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.zeros(3))

    with pytest.raises(TypeError, match="BaseRollout of your own"):
        helpers.make_cluster(Other())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"rollout_engine": "vanila"}, "did you mean 'vanilla'", id="unknown rollout engine"
        ),
        pytest.param(
            {"rollout_config": dataclasses.replace(helpers.ROLLOUT, temperature=0.0)},
            "temperature is 0 in training",
            id="greedy training",
        ),
        pytest.param(
            {"rollout_config": {Mode.EVAL: helpers.ROLLOUT}},
            "no entry for Mode.TRAIN",
            id="no train",
        ),
        pytest.param(
            {"training": {"gradient_accumulation_steps": 2}},
            "set train_micro_batch_size",
            id="accumulation",
        ),
        pytest.param(
            {"training": {"mini_batch_size": 0}},
            "mini_batch_size must be at least 1",
            id="no prompts",
        ),
    ],
)
def test_bad_settings_are_one_clear_error(changes, message):
    with pytest.raises(config_lib.ConfigError, match=message):
        config_with(**changes)


def test_axes_over_which_nothing_is_split_are_refused():
    meshes = {
        Role.ACTOR: jax.sharding.AbstractMesh((4, 2), ("fdsp", "tp")),
        Role.ROLLOUT: jax.sharding.AbstractMesh((2,), ("tp",)),
    }
    with pytest.raises(config_lib.ConfigError) as caught:
        cluster_build.check_axes(meshes, ("fsdp", "row"))
    assert list(caught.value.problems) == [
        "nothing is split over the axis 'fdsp' of actor: parameters and rows are over "
        "['ep', 'fsdp', 'row', 'tp'] (did you mean 'fsdp'?); rename it, or name it in "
        "data_sharding_axis",
        "data_sharding_axis 'row' is an axis of no mesh",
    ]
    cluster_build.check_axes(meshes, ("fdsp",))
    cluster_build.check_axes({Role.ACTOR: meshes[Role.ROLLOUT]}, ("fsdp",))
    cluster_build.check_axes({Role.ACTOR: None}, ("row",))


def test_a_role_without_a_mesh_takes_the_actors():
    devices = np.asarray(jax.devices()[:1])
    one, two = jax.sharding.Mesh(devices, ("fsdp",)), jax.sharding.Mesh(devices, ("tp",))
    config = config_with(role_to_mesh={Role.ACTOR: one, Role.ROLLOUT: two})
    assert [config.mesh(role) for role in (Role.CRITIC, Role.ROLLOUT)] == [one, two]
    assert config_with(role_to_mesh={Role.ROLLOUT: two}).mesh(Role.CRITIC) is None
    with pytest.raises(config_lib.ConfigError, match="role_to_mesh has the key 'actor'"):
        config_with(role_to_mesh={"actor": one})


@pytest.mark.slow
def test_several_devices_give_the_numbers_of_one():
    one, four = virtual_devices.run("tests.rl.mesh_run", devices=4)
    assert (one.pop("devices"), four.pop("devices")) == (1, 4)
    assert max(one.pop("mismatch_max") + four.pop("mismatch_max")) < 1e-5
    for name, values in one.items():
        np.testing.assert_allclose(four[name], values, rtol=1e-4, err_msg=name)
