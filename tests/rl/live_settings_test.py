"""Every setting of reinforcement learning changes something that can be seen.

A table says of each field what is changed and where it shows; a field without an entry is a
failure. Settings of ``tunix grpo`` and ``tunix ppo`` are in ``tests/cli/live_options_test.py``.
"""

import dataclasses
import functools
import re

import jax
import numpy as np
import optax
import pytest

from tests.repo import configs, source
from tests.rl import helpers
from tests.rl.monitoring import alarms_test
from tests.rl.objectives import policy_objective_test
from tunix.rl import rl_cluster
from tunix.rl.collecting import curriculum
from tunix.rl.grpo import grpo_config, grpo_learner, grpo_loss
from tunix.rl.monitoring import alarms
from tunix.rl.objectives import critic, policy_objective, shared_critic
from tunix.rl.ppo import ppo_learner
from tunix.rl.scoring import reward_shaping, rewards

BATCH = {"prompts": helpers.PROMPTS}
TIMES = ("time", "seconds", "per_second")


class Halved(rewards.RewardManager):
    def combine(self, scores):
        return 0.5 * super().combine(scores)


LOSS = {
    "AlgorithmConfig.beta": {"beta": 0.5},
    "AlgorithmConfig.epsilon": {"epsilon": 0.01},
    "AlgorithmConfig.epsilon_high": {"epsilon_high": 2.0},
    "AlgorithmConfig.epsilon_c": {"epsilon_c": 1.01},
    "AlgorithmConfig.entropy_coef": {"entropy_coef": 0.1},
    "AlgorithmConfig.policy_loss_fn": {"policy_loss_fn": "cispo"},
    "AlgorithmConfig.loss_algo": {"loss_algo": "gspo"},
    "AlgorithmConfig.loss_agg_mode": {"loss_agg_mode": "token-mean"},
    "AlgorithmConfig.rollout_correction": {"rollout_correction": "truncated-token"},
    "AlgorithmConfig.rollout_correction_limit": {"rollout_correction_limit": 1.0},
    "AlgorithmConfig.log_entropy": {"log_entropy": True},
    "GRPOConfig.kl_estimator": {"kl_estimator": "k1"},
    "GRPOConfig.kl_placement": {"kl_placement": "reward"},
    "PPOConfig.epsilon_low": {"epsilon_low": 0.01},
}
"""Shows in loss or metrics of one batch."""

RUN = {
    "AlgorithmConfig.num_generations": {"num_generations": 2},
    "AlgorithmConfig.num_iterations": {"num_iterations": 2},
    "AlgorithmConfig.advantage_estimator": {"advantage_estimator": "rloo"},
    "AlgorithmConfig.reward_manager": {"reward_manager": Halved},
    "AlgorithmConfig.reward_weights": {"reward_weights": [2.0]},
    "AlgorithmConfig.mask_truncated": {"mask_truncated": True},
    "AlgorithmConfig.log_token_ratio": {"log_token_ratio": True},
    "GRPOConfig.whiten_advantages": {"whiten_advantages": True},
    "PPOConfig.gamma": {"gamma": 0.5},
    "PPOConfig.gae_lambda": {"gae_lambda": 0.5},
    "PPOConfig.clip_range_value": {"clip_range_value": 1e-4},
    "PPOConfig.kl_method": {"kl_method": "k1"},
    "PPOConfig.whiten_rewards": {"whiten_rewards": True},
    "PPOConfig.whiten_advantages": {"whiten_advantages": False},
    "PPOConfig.critic_backbone": {"critic_backbone": "shared"},
    "PPOConfig.vf_coef": {"critic_backbone": "shared", "vf_coef": 0.9},
    "RLTrainingConfig.actor_optimizer": {"actor_optimizer": optax.sgd(0.1)},
    "RLTrainingConfig.critic_optimizer": {"critic_optimizer": optax.sgd(0.1)},
    "UpdateConfig.mini_batch_size": {"mini_batch_size": 2},
    "UpdateConfig.train_micro_batch_size": {"train_micro_batch_size": 2},
}
"""Shows in completions, metrics or parameters of two steps of training."""

ROLLOUT = {
    "RolloutConfig.max_tokens_to_generate": {"max_tokens_to_generate": 3},
    "SamplingConfig.temperature": {"temperature": 2.0},
    "SamplingConfig.top_p": {"top_p": 0.2},
    "SamplingConfig.top_k": {"top_k": 1},
    "SamplingConfig.max_prompt_length": {"max_prompt_length": 3},
    "SamplingConfig.eos_tokens": {"eos_tokens": tuple(range(2, 40))},
    "RolloutConfig.return_logprobs": {"return_logprobs": False},
}
"""Shows in what is sampled."""

ALARMS = {
    "AlarmConfig.dead_groups": {"dead_groups": 0.2},
    "AlarmConfig.truncated": {"truncated": 0.05},
    "AlarmConfig.mismatch_kl": {"mismatch_kl": 1e-6},
    "AlarmConfig.entropy": {"entropy": 0.9},
    "AlarmConfig.length_factor": {"length_factor": 1.1},
    "AlarmConfig.reward_drop": {"reward_drop": 0.05},
}
"""Shows in which alarms sound."""

CURRICULUM = {
    "CurriculumConfig.solved_at": {"solved_at": 0.2},
    "CurriculumConfig.floor": {"floor": 0.5},
    "CurriculumConfig.memory": {"memory": 0.9},
}
"""Shows in the weights of prompts."""

OVERLONG = {
    "OverlongBuffer.enable": {"enable": False},
    "OverlongBuffer.overlong_buffer_length": {"overlong_buffer_length": 5},
    "OverlongBuffer.overlong_buffer_penalty": {"overlong_buffer_penalty": 3.0},
    "OverlongBuffer.max_response_length": {"max_response_length": 8},
}
"""Shows in what long completions lose."""

ELSEWHERE = {
    "EvaluationConfig.accuracy_function": "tests/rl/monitoring/evaluation_test.py",
    "AlarmConfig.reward_failed": "tests/rl/monitoring/alarms_test.py",
    "AlgorithmConfig.off_policy_steps": "tests/rl/collecting/ahead_test.py",
    "AlgorithmConfig.partial_rollout_tokens": "tests/rl/collecting/partial_rollout_test.py",
    "AlarmConfig.window": "tests/rl/monitoring/alarms_test.py",
    "GRPOConfig.dynamic_sampling": "tests/rl/grpo/relatives_test.py",
    "GRPOConfig.max_sampling_rounds": "tests/rl/grpo/relatives_test.py",
    "GRPOConfig.overlong_buffer": "tests/rl/grpo/relatives_test.py",
    "RolloutConfig.seed": "tests/rl/rl_cluster_test.py",
    "EngineOptions.kv_cache_size": "tests/rl/rollout/base_rollout_test.py",
    "UpdateConfig.rollout_micro_batch_size": "tests/rl/grpo/grpo_learner_test.py",
    "UpdateConfig.compute_logps_micro_batch_size": "tests/rl/split_run.py",
    "UpdateConfig.alarms": "tests/rl/rollout_steps_test.py",
    "ClusterConfig.training_config": "tests/rl/helpers.py",
    "ClusterConfig.rollout_config": "tests/rl/rl_cluster_test.py",
    "ClusterConfig.role_to_mesh": "tests/rl/split_run.py",
    "EngineConfig.rollout_engine": "tests/rl/rl_cluster_test.py",
    "EngineConfig.offload_to_cpu": "tests/rl/split_run.py",
    "EngineConfig.verify_weight_sync": "tests/rl/split_run.py",
    **dict.fromkeys(
        ("Reward.fn", "Reward.name", "Reward.run_in", "Reward.workers", "Reward.time_limit"),
        "tests/rl/scoring/rewards_test.py",
    ),
    "Reward.on_error": "tests/rl/scoring/rewards_test.py",
    **{
        f"SandboxLimits.{name}": "tests/rl/reward_fns/sandbox_test.py"
        for name in (
            "cpu_seconds",
            "wall_seconds",
            "memory_mib",
            "output_bytes",
            "file_bytes",
            "disk_mib",
            "require_isolation",
            "allow_root",
        )
    },
}
"""Has a test of its own, or does not change a result: the file that sets it."""


def test_every_field_has_an_entry():
    fields = {
        f"{cls.__name__}.{name}"
        for cls in configs.config_classes()
        if cls.__module__.startswith("tunix.rl.")
        for name in configs.new_fields(cls)
    }
    tables = (LOSS, RUN, ROLLOUT, ALARMS, CURRICULUM, OVERLONG, ELSEWHERE)
    entries = [name for table in tables for name in table]
    assert len(entries) == len(set(entries))
    assert fields - set(entries) == set(), "say in a table here where these fields show"
    assert set(entries) - fields == set(), "these fields are gone"


@pytest.mark.parametrize("field", list(ELSEWHERE))
def test_the_file_that_is_named_sets_the_field(field):
    text = (source.ROOT / ELSEWHERE[field]).read_text()
    name = field.rpartition(".")[2]
    assert re.search(rf"\b{name}\b", text), f"{ELSEWHERE[field]} does not mention {name}"


@functools.cache
def loss_batch(aggregate):
    batch = helpers.one_batch(policy_objective_test.rollout(), aggregate=aggregate)
    noise = np.random.default_rng(7).normal(0.0, 0.4, batch.sampler_logps.shape)
    return batch.replace(old_logps=batch.sampler_logps + noise.astype(np.float32))


def loss_of(config):
    is_ppo = isinstance(config, ppo_learner.PPOConfig)
    objective = policy_objective.policy_objective if is_ppo else grpo_loss.grpo_loss
    output = objective(
        policy_objective_test.TinyModel(), loss_batch(config.aggregate), config=config
    )
    return {name: float(value) for name, value in output.finalize().items()}


@pytest.mark.parametrize("field", list(LOSS))
def test_it_shows_in_the_loss(field):
    config_class = ppo_learner.PPOConfig if field.startswith("PPO") else grpo_config.GRPOConfig
    base = {"rollout_correction": "truncated-token"} if "limit" in field else {}
    assert loss_of(config_class(**base)) != loss_of(config_class(**base, **LOSS[field]))


def run_of(config_class, **settings):
    """Return completions, metrics and parameters after two steps of training."""
    names = {f.name for f in dataclasses.fields(config_class)}
    own = {name: value for name, value in settings.items() if name in names}
    training = {name: value for name, value in settings.items() if name not in names}
    actor, judge = helpers.tiny_decoder(), None
    if own.get("critic_backbone") == "shared":
        shared_critic.add_value_head(actor)
    elif config_class is ppo_learner.PPOConfig:
        judge = critic.create_critic_model(actor)
    cluster = helpers.make_cluster(
        actor, critic=judge, reference=helpers.tiny_decoder(7), **training
    )
    # Values are clipped where they have moved: from the second update on.
    updates = 2 if config_class is ppo_learner.PPOConfig else 1
    config = config_class(**{"beta": 0.1, "num_generations": 4, "num_iterations": updates, **own})
    learner_class = (
        ppo_learner.PPOLearner
        if config_class is ppo_learner.PPOConfig
        else grpo_learner.GRPOLearner
    )
    learner = learner_class(cluster, config, helpers.share_of_odd_characters)
    sizes, update = [], learner.update
    learner.update = lambda parts, **weight: (
        sizes.append([part.tokens.shape for part in parts]) or update(parts, **weight)
    )
    story = []
    for step in (1, 2):
        groups = learner.train_on(BATCH)
        story += [
            (one.text, one.reward, np.ravel(one.advantage_of_tokens).tolist(), one.log_ratio)
            for group in groups
            for one in group.trajectories
        ]
        metrics = cluster.log_metrics(rl_cluster.Mode.TRAIN, step)
        story.append({n: v for n, v in metrics.items() if not any(t in n for t in TIMES)})
    weights = cluster.actor_trainer.model.layers.mlp.up_proj.w[...]
    return sizes, story, np.asarray(weights).tolist()


@functools.cache
def plain_run(config_class, shared):
    return run_of(config_class, **({"critic_backbone": "shared"} if shared else {}))


@pytest.mark.slow
@pytest.mark.parametrize("field", list(RUN))
def test_it_shows_in_training(field):
    is_ppo = field.startswith("PPO") or "critic" in field
    config_class = ppo_learner.PPOConfig if is_ppo else grpo_config.GRPOConfig
    assert run_of(config_class, **RUN[field]) != plain_run(config_class, field.endswith("vf_coef"))


@pytest.fixture(scope="module")
def sampling_cluster():
    return helpers.make_cluster()


@pytest.mark.parametrize("field", list(ROLLOUT))
def test_it_shows_in_what_is_sampled(field, sampling_cluster):
    def sampled(**changes):
        config = dataclasses.replace(helpers.ROLLOUT, **changes)
        try:
            output = sampling_cluster.generate(
                helpers.PROMPTS, rollout_config=config, num_samples=2, key=jax.random.key(3)
            )
        except ValueError as error:
            return str(error)
        return [one.token_ids.tolist() for one in output.completions], output.has_logprobs

    assert sampled() != sampled(**ROLLOUT[field])


@pytest.mark.parametrize("field", list(ALARMS))
def test_it_shows_in_the_alarms(field):
    first, calm = alarms_test.CALM, alarms.AlarmConfig()
    last = {**alarms_test.UP, "completion_length": 30.0, "reward/format": 0.9, "entropy": 0.5}
    changed = dataclasses.replace(calm, **ALARMS[field])
    assert alarms.conditions([first], [last], calm) == {}
    assert len(alarms.conditions([first], [last], changed)) == 1


@pytest.mark.parametrize("field", list(CURRICULUM))
def test_it_shows_in_the_weights_of_prompts(field):
    def weights(**changes):
        rows = [{"prompts": text} for text in "abc"]
        made = curriculum.Curriculum(
            rows, curriculum.CurriculumConfig(**changes), batch_size=1, num_batches=None, seed=0
        )
        for key, scores in ((0, [1.0, 1.0]), (0, [1.0, 1.0]), (1, [1.0, 1.0]), (1, [1.0, 0.3])):
            (group,) = helpers.make_groups([[0.0, 0.0]])
            scored = zip(group.trajectories, scores, strict=True)
            members = [dataclasses.replace(one, reward=score) for one, score in scored]
            made.observe([dataclasses.replace(group, prompt_key=key, trajectories=members)])
        return made.weights().tolist()

    assert weights() != weights(**CURRICULUM[field])


@pytest.mark.parametrize("field", list(OVERLONG))
def test_it_shows_in_what_long_completions_lose(field):
    def lost(**changes):
        buffer = grpo_config.GRPOConfig(
            overlong_buffer=reward_shaping.OverlongBuffer(**changes)
        ).overlong
        lengths = np.array([2, 6, 9, 10])
        return None if buffer is None else buffer.penalty(lengths, 10).tolist()

    assert lost() != lost(**OVERLONG[field])
