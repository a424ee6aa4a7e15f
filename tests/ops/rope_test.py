"""Rotary embedding against complex numbers, cases worked by hand, and its own invariances."""

import jax.numpy as jnp
import numpy as np
import pytest

from tunix.ops import rope
from tunix.utils import config

LLAMA31 = rope.RopeScaling(
    kind="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position=8192,
)


def rotated(x, positions, head_dim, theta=10_000.0):
    sin, cos = rope.rope_angles(positions, rope.rope_frequencies(head_dim, theta, None))
    return rope.apply_rope(x, sin, cos)


def test_frequencies_of_a_small_head_worked_by_hand():
    # theta ** (-2i / H) with theta = 10000, H = 4: 1 and 1 / 100.
    np.testing.assert_allclose(rope.rope_frequencies(4, 10_000.0, None), [1.0, 0.01], rtol=1e-7)


def test_rotation_is_multiplication_by_a_unit_complex_number():
    rng = np.random.default_rng(0)
    x, positions = rng.normal(size=(2, 5, 3, 8)).astype(np.float32), rng.integers(0, 9, (2, 5))
    z = x[..., :4] + 1j * x[..., 4:]  # channel i is paired with i + H/2
    z = z * np.exp(1j * positions[:, :, None, None] * 10_000.0 ** (-np.arange(4) / 4))
    y = rotated(jnp.asarray(x), jnp.asarray(positions), 8)
    np.testing.assert_allclose(y, np.concatenate([z.real, z.imag], -1), atol=2e-6)


def test_scores_depend_on_relative_position_only():
    rng = np.random.default_rng(1)
    q, k = rng.normal(size=(2, 1, 1, 1, 16)).astype(np.float32)

    def score(i, j):
        at = lambda x, p: rotated(jnp.asarray(x), jnp.array([[p]]), 16)  # noqa: E731
        return float((at(q, i) * at(k, j)).sum())

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-5)
    assert abs(score(7, 3) - score(7, 4)) > 1e-3


def test_position_zero_is_left_alone():
    x = jnp.arange(8.0).reshape(1, 1, 1, 8)
    np.testing.assert_array_equal(rotated(x, jnp.zeros((1, 1), jnp.int32), 8), x)


def test_llama3_keeps_fast_angles_and_stretches_slow_ones():
    plain = rope.rope_frequencies(128, 500_000.0, None)
    scaled = rope.rope_frequencies(128, 500_000.0, LLAMA31)
    wavelengths = 2 * np.pi / plain
    fast, slow = wavelengths < 8192 / 4, wavelengths > 8192
    np.testing.assert_array_equal(scaled[fast], plain[fast])
    np.testing.assert_allclose(scaled[slow], plain[slow] / 8, rtol=1e-6)
    between = ~fast & ~slow
    assert between.any()
    assert np.all((scaled[between] < plain[between]) & (scaled[between] > plain[between] / 8))


@pytest.mark.parametrize(
    ("last", "slow_angle"),
    [
        pytest.param(3, 0.3, id="within the original length"),
        pytest.param(7, 0.7, id="the original length exactly"),
        pytest.param(8, 0.64, id="one token beyond it"),
        pytest.param(15, 0.5, id="twice the original length"),
    ],
)
def test_a_dynamic_base_follows_the_length_of_the_row_worked_by_hand(last, slow_angle):
    # Length L = last + 1, original 8, factor 2: growth g = 2 L / 8 - 1 is 1, 1, 1.25 and 3. With
    # H = 4 the base is 100 g ** 2 = 100, 100, 156.25 and 900; the slow channel turns by its
    # inverse root: 1/10, 1/10, 1/12.5 and 1/30 a position. The fast one turns by 1, always.
    scaling = rope.RopeScaling(kind="dynamic", factor=2.0, original_max_position=8)
    positions = jnp.array([[0, last], [0, 1]])
    sin, cos = rope.rotation(positions, 4, 100.0, scaling)
    np.testing.assert_allclose(sin[0, 1, 0], np.sin([last, slow_angle]), rtol=1e-5)
    np.testing.assert_allclose(cos[0, 1, 0], np.cos([last, slow_angle]), rtol=1e-5)
    # The short row beside it keeps its own base.
    np.testing.assert_allclose(sin[1, 1, 0], np.sin([1.0, 0.1]), rtol=1e-5)


def test_an_odd_head_is_refused():
    with pytest.raises(ValueError, match=r"head_dim must be even .* got 7"):
        rope.rope_frequencies(7, 10_000.0, None)


def test_every_bad_setting_is_listed():
    with pytest.raises(config.ConfigError) as error:
        rope.RopeScaling(
            kind="lama3",
            factor=0.5,
            low_freq_factor=4.0,
            high_freq_factor=4.0,
            original_max_position=0,
        )
    message = str(error.value)
    for word in ("'lama3'", "0.5", "low_freq_factor", "original_max_position"):
        assert word in message
