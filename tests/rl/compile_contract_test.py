"""After the first optimizer step nothing compiles any more, whatever is sampled.

Completions come from a mock: what sampling compiles is tested with the engine.
"""

import functools
from collections import Counter

import numpy as np
import pytest

from tests.rl import helpers
from tunix.perf import compile_counter
from tunix.rl import rl_cluster
from tunix.rl.grpo import (
    cispo_learner,
    dapo_learner,
    grpo_config,
    grpo_learner,
    gspo_learner,
    reinforce_plus_plus_learner,
    rloo_learner,
)
from tunix.rl.objectives import critic, shared_critic
from tunix.rl.ppo import ppo_learner
from tunix.rl.rollout import mock_rollout

ROLLOUT = helpers.base_rollout.RolloutConfig(
    max_tokens_to_generate=60, max_prompt_length=8, temperature=0.8
)
BATCHES = (
    ["AB", "CDEF", "3", "9"],
    ["=", "A", "=:", "ABCDEFGH"],  # two groups in which all earn the same
    ["=", "==", "=", "=="],
    ["A"] * 9,
    ["Z"],
)


def length_of_some(prompts, completions):
    """A reward that tells the completions of some prompts apart, and of those with '=' none."""
    return [
        0.0 if "=" in prompt else len(text) + len(set(text)) / 99
        for prompt, text in zip(prompts, completions, strict=True)
    ]


GRPO, PPO = grpo_config.GRPOConfig, ppo_learner.PPOConfig
SLOW = functools.partial(pytest.param, marks=pytest.mark.slow)
CASES = [
    pytest.param(GRPO(num_generations=8, beta=0.0), {}, id="grpo"),
    SLOW(
        GRPO(num_generations=8, beta=0.1, num_iterations=2, mask_truncated=True),
        {"mini_batch_size": 4, "train_micro_batch_size": 1, "compute_logps_micro_batch_size": 1},
        id="grpo, KL in the loss, mini- and micro-batches",
    ),
    SLOW(
        gspo_learner.GSPOConfig(
            num_generations=8, rollout_correction="truncated-sequence", num_iterations=2
        ),
        {},
        id="gspo, corrected",
    ),
    SLOW(
        dapo_learner.DAPOConfig(num_generations=8, max_sampling_rounds=2, log_token_ratio=True),
        {"mini_batch_size": 4},
        id="dapo",
    ),
    SLOW(rloo_learner.RLOOConfig(num_generations=8, beta=0.1), {}, id="rloo, KL in the reward"),
    SLOW(
        reinforce_plus_plus_learner.ReinforcePlusPlusConfig(num_generations=8, beta=0.1),
        {},
        id="reinforce++, KL charged to tokens",
    ),
    SLOW(cispo_learner.CISPOConfig(num_generations=8, entropy_coef=0.01), {}, id="cispo"),
    SLOW(
        PPO(num_generations=8, beta=0.1, num_iterations=2, whiten_rewards=True),
        {"mini_batch_size": 4},
        id="ppo",
    ),
    pytest.param(
        PPO(
            num_generations=8,
            beta=0.0,
            num_iterations=2,
            critic_backbone="shared",
            rollout_correction="masked-token",
            log_token_ratio=True,
        ),
        {},
        id="ppo with a shared critic, corrected",
    ),
]


def learner_of(config, training):
    actor, judge = helpers.tiny_decoder(num_layers=1), None
    is_ppo = isinstance(config, PPO)
    if is_ppo and config.critic_backbone == "shared":
        shared_critic.add_value_head(actor)
    elif is_ppo:
        judge = critic.create_critic_model(actor)
    reference = helpers.tiny_decoder(7, num_layers=1) if config.beta else None
    engine = functools.partial(mock_rollout.MockRollout, lengths=mock_rollout.uniform())
    cluster = helpers.make_cluster(
        actor,
        critic=judge,
        reference=reference,
        rollout=ROLLOUT,
        rollout_engine=engine,
        **training,
    )
    kind = ppo_learner.PPOLearner if is_ppo else grpo_learner.GRPOLearner
    return kind(cluster, config, length_of_some)


@pytest.mark.parametrize(("config", "training"), CASES)
def test_nothing_compiles_after_the_first_step(config, training):
    learner = learner_of(config, training)
    # Where dead groups are skipped, the first step has nothing to learn.
    batches = ({"prompts": prompts} for prompts in (BATCHES[2:] + BATCHES[:2]))
    cluster, chunks = learner.rl_cluster, []
    update = cluster.update_actor

    def counted(micro_batches, *, weight):
        chunks.append(len(micro_batches))
        return update(micro_batches, weight=weight)

    cluster.update_actor = counted
    with compile_counter.CompileCounter() as first:
        learner.train_on(next(batches), lambda: next(batches, None))
        cluster.log_metrics(rl_cluster.Mode.TRAIN, 1)
    # The loss has one program, however many chunks there are, and the optimizer has one.
    programs = Counter(first.names)
    trained = 2 if cluster.has_critic else 1
    assert programs["jit(single)"] == 0
    assert programs["jit(accumulate)"] == programs["jit(apply)"] == trained, programs
    with compile_counter.CompileCounter() as later:
        for step, batch in enumerate(batches, 2):
            learner.train_on(batch, lambda: next(batches, None))
            cluster.log_metrics(rl_cluster.Mode.TRAIN, step)
    assert later.count == 0, later.names
    assert len(set(chunks)) > 1, "all steps have as many chunks: the test is too easy"
    for name in ("loss", "ratio_max"):
        assert len(helpers.history(cluster, name)) == step
    assert np.isfinite(helpers.history(cluster, "loss")).all()
