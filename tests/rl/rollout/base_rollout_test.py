import pytest

from tunix.rl.rollout import base_rollout
from tunix.utils import config as config_lib


def test_all_mistakes_are_reported_at_once():
    with pytest.raises(config_lib.ConfigError) as caught:
        base_rollout.RolloutConfig(
            max_tokens_to_generate=0, temperature=-1.0, top_p=0.0, top_k=0, seed=None
        )
    assert len(caught.value.problems) == 5


def test_the_cache_holds_a_prompt_and_its_completion():
    config = base_rollout.RolloutConfig(max_prompt_length=10, max_tokens_to_generate=5)
    assert config.cache_size == 15
    with pytest.raises(config_lib.ConfigError, match="raise it to 15"):
        base_rollout.RolloutConfig(max_prompt_length=10, max_tokens_to_generate=5, kv_cache_size=14)
