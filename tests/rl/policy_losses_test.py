"""The whole policy objective against TRL's, run on the same log-probabilities."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tunix.rl import common
from tunix.rl.grpo import cispo_learner, dapo_learner, drgrpo_learner, grpo_config, gspo_learner
from tunix.rl.objectives import aggregation, policy_objective

FOUND = json.loads(pathlib.Path(__file__).with_name("policy_losses.json").read_text())
INPUTS = {name: jnp.asarray(values) for name, values in FOUND["inputs"].items()}
MASK = np.arange(5) < np.asarray(FOUND["lengths"])[:, None]

Config = grpo_config.GRPOConfig
DAPOConfig = dapo_learner.DAPOConfig
TOKENS = {"beta": 0.0, "loss_agg_mode": "token-mean"}
CONFIGS = {
    "grpo": Config(beta=0.1),
    "drgrpo": drgrpo_learner.DrGRPOConfig(beta=0.1),
    "dapo": DAPOConfig(),
    "dual clip": DAPOConfig(epsilon_c=1.4),
    "gspo": gspo_learner.GSPOConfig(epsilon=0.05, epsilon_high=0.08),
    "cispo": cispo_learner.CISPOConfig(epsilon_high=0.3),
    "advantages of tokens": Config(**TOKENS),
    "entropy": Config(**TOKENS, entropy_coef=0.03),
    "truncated-token": Config(**TOKENS, rollout_correction="truncated-token"),
    "truncated-sequence": Config(beta=0.0, rollout_correction="truncated-sequence"),
}


LENGTHS = np.asarray(FOUND["lengths"])


def batch_of(advantages, aggregate):
    """Return what the objective reads of a batch; where the tokens lie is not read."""
    nowhere = np.zeros(1, np.int32)
    weights, divisors = aggregation.weigh(aggregate, LENGTHS, max_length=MASK.shape[1])
    known = {"advantages": advantages, "sampler_logps": INPUTS["sampler"]}
    known |= {"old_logps": INPUTS["old"], "ref_logps": INPUTS["ref"], "mask": MASK}
    known["weights"] = np.broadcast_to(weights[:, None], MASK.shape)
    return common.PolicyBatch(
        **dict.fromkeys(("tokens", "positions", "segment_ids", "prefix_ids"), nowhere[None]),
        **dict.fromkeys(("source", "targets"), nowhere),
        **{name: jnp.ravel(values) for name, values in known.items()},
        sequence=jnp.repeat(jnp.arange(len(MASK)), MASK.shape[1]),
        num_targets=None,
        weight=jnp.float32(divisors.sum()),
        on_policy=jnp.bool_(False),
        temperature=jnp.float32(1.0),
    )


@pytest.mark.parametrize("name", [*CONFIGS, "gspo-token"])
def test_losses_and_gradients_are_those_of_trl(name):
    is_token_form = name == "gspo-token"
    found = FOUND["cases"]["gspo" if is_token_form else name]
    changes = {"loss_algo": "gspo-token", "epsilon": 0.05, "epsilon_high": 0.08}
    config = gspo_learner.GSPOConfig(**changes) if is_token_form else CONFIGS[name]
    advantages = INPUTS["advantages"]
    if name != "advantages of tokens":
        advantages = jnp.broadcast_to(advantages[:, :1], advantages.shape)

    def loss(logps, entropy):
        policy = common.PolicyLogps(logps.ravel(), entropy.ravel() if config.entropy_coef else None)
        batch = batch_of(advantages, config.aggregate)
        output = policy_objective.objective_of_logps(
            policy, batch, config=config, kl_beta=config.beta
        )
        return output.loss_sum / output.weight_sum

    value, (gradient, of_entropy) = jax.value_and_grad(loss, (0, 1))(
        INPUTS["logps"], INPUTS["entropy"]
    )
    np.testing.assert_allclose(gradient, found["gradient"], atol=1e-6)
    np.testing.assert_allclose(of_entropy, found.get("entropy_gradient", 0.0 * MASK), atol=1e-6)
    assert np.abs(found["gradient"]).max() > 1e-2
    if name != "cispo":  # its value is the weight's, TRL's that times log p; one gradient
        np.testing.assert_allclose(value, found["loss"], atol=1e-6)
