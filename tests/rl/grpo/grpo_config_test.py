import dataclasses

import pytest

from tunix.rl.grpo import grpo_config
from tunix.rl.objectives import advantages
from tunix.utils import config as config_lib


def test_all_mistakes_are_reported_at_once():
    with pytest.raises(config_lib.ConfigError) as caught:
        grpo_config.GRPOConfig(
            num_generations=1,
            num_iterations=0,
            beta=-1.0,
            epsilon=2.0,
            epsilon_high=0.0,
            advantage_estimator="grpoo",
            loss_agg_mode="token-means",
            loss_algo="gspoo",
            kl_estimator="k4",
            policy_loss_fn=3,
        )
    message = str(caught.value)
    assert len(caught.value.problems) == 10
    assert "did you mean 'token-mean'?" in message
    assert "policy_loss_fn must be one of ['cispo', 'grpo', 'ppo'] or a function, got 3" in message


def test_an_unknown_key_is_an_error_with_a_hint():
    with pytest.raises(config_lib.ConfigError, match="did you mean 'num_generations'"):
        grpo_config.GRPOConfig.from_mapping({"num_generation": 4})


def test_names_become_functions_and_functions_stay():
    assert grpo_config.GRPOConfig().advantage_fn is advantages.group_relative
    own = lambda rewards: rewards  # noqa: E731
    assert grpo_config.GRPOConfig(advantage_estimator=own).advantage_fn is own


def test_the_clip_is_symmetric_unless_said_otherwise():
    assert grpo_config.GRPOConfig(epsilon=0.1).clip_range == (0.1, 0.1)
    assert grpo_config.GRPOConfig(epsilon=0.1, epsilon_high=0.3).clip_range == (0.1, 0.3)


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        grpo_config.GRPOConfig().beta = 1.0
