import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from tests.rl import helpers
from tunix.models import lora
from tunix.rl import utils
from tunix.rl.cluster import cluster_config, critic_trainer
from tunix.rl.objectives import credit, critic
from tunix.sft import checkpoint_manager


def noisy_critic(actor):
    judge = critic.create_critic_model(actor)
    judge.value_head[...] = jax.random.normal(jax.random.key(0), judge.value_head.shape)
    judge.value_bias[...] = jnp.array([0.3])
    return judge


def test_a_value_is_that_of_the_state_before_the_token():
    actor, groups = helpers.tiny_decoder(), helpers.make_groups([[1.0, -1.0], [0.5, 2.0]])
    judge = noisy_critic(actor)
    values = helpers.per_trajectory(groups, lambda batch: critic.token_values(judge, batch))
    pairs = [(group, member) for group in groups for member in group.trajectories]
    for own, (group, member) in zip(values, pairs, strict=True):
        ids = np.concatenate([group.prompt_ids, member.trained_ids])[None]
        alone = np.asarray(judge(jnp.asarray(ids)))[0]
        start = len(group.prompt_ids) - 1
        expected = alone[start : start + len(member.trained_ids)]
        np.testing.assert_allclose(own, expected, atol=1e-5)


def test_it_starts_at_zero_from_weights_of_its_own():
    actor = helpers.tiny_decoder()
    judge = utils.create_critic_model(actor)
    tokens = jnp.arange(6)[None]
    np.testing.assert_array_equal(judge(tokens), np.zeros((1, 6)))
    before = np.asarray(actor.norm.scale[...])
    judge.backbone.norm.scale[...] = judge.backbone.norm.scale[...] + 1.0
    np.testing.assert_array_equal(actor.norm.scale[...], before)


def test_a_lora_critic_shares_the_base_and_trains_adapters_and_head():
    actor = lora.apply_lora(
        helpers.tiny_decoder(), lora.LoraConfig(rank=2, alpha=4.0), rngs=nnx.Rngs(1)
    )
    judge = critic.create_critic_model(actor)
    assert judge.backbone.embed_tokens.w[...] is actor.embed_tokens.w[...]
    # What holds them is not: a critic that moves to devices of its own must leave the actor's.
    assert judge.backbone.embed_tokens.w is not actor.embed_tokens.w
    assert (
        judge.backbone.layers.mlp.up_proj.lora_a[...] is not (actor.layers.mlp.up_proj.lora_a[...])
    )
    assert isinstance(judge.value_head, nnx.LoRAParam)
    assert isinstance(judge.value_bias, nnx.LoRAParam)


def test_an_output_head_of_its_own_is_left_out():
    judge = critic.create_critic_model(helpers.tiny_decoder(weight_tying=False))
    names = {path[1] for path, _ in nnx.to_flat_state(nnx.state(judge)) if path[0] == "backbone"}
    assert "lm_head" not in names
    assert judge(jnp.arange(4)[None]).shape == (1, 4)


def test_something_else_than_a_decoder_is_refused():
    with pytest.raises(TypeError, match="made from a tunix decoder, not Critic"):
        critic.create_critic_model(critic.create_critic_model(helpers.tiny_decoder()))


def test_the_value_loss_is_the_formula_written_out():
    actor, groups = helpers.tiny_decoder(), helpers.make_groups([[1.0, -1.0], [0.5, 2.0]])
    judge = noisy_critic(actor)
    rng = np.random.default_rng(0)
    members = credit.members_of(groups)
    old, returns = (
        [rng.normal(size=one.num_trained).astype(np.float32) for one in members] for _ in range(2)
    )
    batch = helpers.one_batch(credit.with_values(groups, old, returns))
    output = critic.value_objective(judge, batch, clip_range=0.2)
    values = np.asarray(critic.token_values(judge, batch))[np.asarray(batch.mask)]
    old, returns = np.concatenate(old), np.concatenate(returns)
    clipped = np.clip(values, old - 0.2, old + 0.2)
    losses = 0.5 * np.maximum((values - returns) ** 2, (clipped - returns) ** 2)
    np.testing.assert_allclose(output.finalize()["loss"], losses.mean(), rtol=1e-5)
    with pytest.raises(ValueError, match="the batch has none"):
        critic.value_objective(judge, dataclasses.replace(batch, values=None), clip_range=None)


def test_actor_and_critic_continue_from_the_newest_step_at_which_both_are_sound(tmp_path):
    root = tmp_path / "checkpoints"
    beside = critic_trainer.checkpoints_beside(root)
    assert beside == tmp_path / "checkpoints_critic"
    options = ocp.CheckpointManagerOptions(max_to_keep=None)
    for folder, steps in ((root, (1, 2, 3)), (beside, (1, 2, 3, 4))):
        saving = checkpoint_manager.CheckpointManager(folder, options)
        for step in steps:
            saving.save_state(step, {"params": {"w": jnp.ones(3)}}, {}, force=True)
        saving.close()
    shutil.rmtree(root / "3" / "params")
    shutil.rmtree(beside / "2" / "params")
    config = cluster_config.RLTrainingConfig(
        actor_optimizer=optax.sgd(0.1),
        eval_every_n_steps=1,
        checkpoint_root_directory=str(root),
        checkpointing_options=options,
    )
    assert critic_trainer.set_aside_damaged(config) is config
    assert len(list(root.iterdir())) == 3
    done = critic_trainer.set_aside_damaged(dataclasses.replace(config, resume="newest-sound"))
    assert done == config
    assert [path.name for path in root.iterdir()] == ["1"]
    assert sorted(path.name for path in (tmp_path / "checkpoints.damaged").iterdir()) == ["2", "3"]
    # What the critic has beyond the actor's is deleted when its trainer is made.
    assert sorted(path.name for path in beside.iterdir()) == ["1", "4"]
