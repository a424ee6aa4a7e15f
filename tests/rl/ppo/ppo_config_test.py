import pytest

from tunix.rl.objectives import kl, token_advantages
from tunix.rl.ppo import ppo_config, ppo_learner
from tunix.utils import config as config_lib


def test_all_mistakes_are_reported_at_once():
    with pytest.raises(config_lib.ConfigError) as caught:
        ppo_config.PPOConfig(
            num_iterations=0,
            beta=-1.0,
            gamma=1.5,
            gae_lambda=-0.1,
            epsilon_low=0.0,
            epsilon_c=0.5,
            entropy_coef=-1.0,
            clip_range_value=0.0,
            kl_method="low_var",
            advantage_estimator="grpo",
            rollout_correction="truncated-tokens",
            rollout_correction_limit=0.5,
        )
    message = str(caught.value)
    assert len(caught.value.problems) == 12
    assert "kl_method 'low_var' is not one of" in message
    assert "advantage_estimator 'grpo' is not one of ['gae']" in message
    assert "did you mean 'truncated-token'?" in message


def test_the_clip_may_be_narrower_below():
    assert ppo_config.PPOConfig(epsilon=0.2).clip_range == (0.2, 0.2)
    own = ppo_config.PPOConfig(epsilon=0.2, epsilon_low=0.1, epsilon_high=0.3)
    assert own.clip_range == (0.1, 0.3)
    assert ppo_config.PPOConfig(epsilon_c=3.0).clip_options["clip_dual"] == 3.0


def test_names_become_functions():
    assert ppo_config.PPOConfig().kl_fn is kl.k3
    assert ppo_config.PPOConfig().token_advantage_fn is token_advantages.gae
    assert ppo_learner.PpoConfig is ppo_config.PPOConfig
    assert ppo_learner.PpoLearner is ppo_learner.PPOLearner
