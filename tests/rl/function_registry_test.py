import pytest

from tunix.rl import algorithm_config, function_registry
from tunix.rl.grpo import grpo_config
from tunix.rl.objectives import advantages, losses
from tunix.rl.scoring import rewards
from tunix.utils import config as config_lib


@pytest.fixture
def registry():
    return function_registry.FunctionRegistry()


def test_the_functions_of_the_library_are_there(registry):
    assert registry.get("policy_loss_fn", "grpo") is losses.clipped_surrogate
    assert registry.get("advantage_estimator", "rloo") is advantages.leave_one_out
    assert registry.get("reward_manager", "sequence-level") is rewards.RewardManager
    assert registry.list_categories() == sorted(registry.DEFAULT_ALLOWED_CATEGORIES)
    assert "gae" in registry.list_functions("token_advantage_estimator")


def test_a_name_can_be_given_once(registry):
    @registry.register("advantage_estimator", "mine")
    def mine(rewards):
        return rewards

    assert registry.get("advantage_estimator", "mine") is mine
    with pytest.raises(ValueError, match=r"already .*mine; choose another name"):
        registry.register("advantage_estimator", "mine")(lambda r: r)
    with pytest.raises(ValueError, match="already"):
        registry.register("advantage_estimator", "grpo")(mine)


def test_running_a_notebook_cell_again_replaces_the_function(registry):
    def define():
        def again(rewards):
            return rewards

        return registry.register("advantage_estimator", "again")(again)

    assert define() is not define()
    assert registry.list_functions("advantage_estimator").count("again") == 1


def test_unknown_names_and_categories_are_errors_with_hints(registry):
    with pytest.raises(KeyError, match="did you mean 'rloo'"):
        registry.get("advantage_estimator", "rlo")
    with pytest.raises(ValueError, match="did you mean 'policy_loss_fn'"):
        registry.register("policy_loss", "x")
    with pytest.raises(ValueError, match="no category"):
        function_registry.FunctionRegistry(["own"]).list_functions("policy_loss_fn")


def test_registered_names_work_in_configs(monkeypatch):
    monkeypatch.setattr(function_registry, "default_registry", function_registry.FunctionRegistry())

    @function_registry.register_policy_loss_fn("plain")
    def plain(log_ratio, advantages, mask, *, clip_low, clip_high):
        return -log_ratio * advantages, {}

    @function_registry.register_advantage_estimator("half")
    def half(rewards):
        return rewards / 2

    @function_registry.register_reward_manager("loud")
    class Loud(rewards.RewardManager):
        pass

    config = grpo_config.GRPOConfig(
        beta=0.0, policy_loss_fn="plain", advantage_estimator="half", reward_manager="loud"
    )
    assert config.policy_loss is plain
    assert config.advantage_fn is half
    assert config.reward_manager_class is Loud
    assert function_registry.get_policy_loss_fn("plain") is plain
    assert function_registry.get_advantage_estimator("half") is half
    assert function_registry.get_reward_manager("loud") is Loud
    # Nothing is known of a user's loss at advantage 0, by whatever name.
    assert not config.skips_dead_sequences


def test_functions_go_wherever_names_go():
    config = algorithm_config.AlgorithmConfig(
        policy_loss_fn=losses.clipped_importance, reward_manager=rewards.RewardManager
    )
    assert config.policy_loss is losses.clipped_importance
    assert config.reward_manager_class is rewards.RewardManager
    with pytest.raises(config_lib.ConfigError, match="did you mean 'sequence-level'"):
        algorithm_config.AlgorithmConfig(reward_manager="sequence-levle")
