import numpy as np
import pytest

from tunix.rl.scoring import reward_shaping
from tunix.utils import config as config_lib


def test_the_penalty_grows_over_the_last_tokens():
    # Longest 20, buffer 5: nothing up to 15, then a fifth per token, all of it from 20 on.
    lengths = np.array([3, 15, 16, 18, 20, 25])
    found = reward_shaping.overlong_penalty(lengths, longest=20, buffer=5, penalty=2.0)
    np.testing.assert_allclose(found, [0.0, 0.0, -0.4, -1.2, -2.0, -2.0])


def test_the_buffer_is_a_fifth_of_what_the_rollout_allows():
    lengths = np.array([80, 90, 100])
    found = reward_shaping.OverlongBuffer().penalty(lengths, 100)
    np.testing.assert_allclose(found, [0.0, -0.5, -1.0])


def test_every_length_can_be_set():
    own = reward_shaping.OverlongBuffer(
        overlong_buffer_length=4, overlong_buffer_penalty=0.5, max_response_length=10
    )
    np.testing.assert_allclose(own.penalty(np.array([6, 8, 12]), 100), [0.0, -0.25, -0.5])


def test_mistakes_are_reported_at_once():
    with pytest.raises(config_lib.ConfigError) as caught:
        reward_shaping.OverlongBuffer(overlong_buffer_length=9, max_response_length=5)
    assert "more than max_response_length 5" in str(caught.value)
    with pytest.raises(config_lib.ConfigError) as caught:
        reward_shaping.OverlongBuffer(overlong_buffer_length=0, overlong_buffer_penalty=-1.0)
    assert len(caught.value.problems) == 2
