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


def test_linear_scaling_divides_every_frequency():
    linear = rope.RopeScaling(kind="linear", factor=4.0)
    np.testing.assert_allclose(rope.rope_frequencies(4, 10_000.0, linear), [0.25, 0.0025])


def test_llama3_by_hand():
    # theta 64, H 6: frequencies 1, 1/4 and 1/16, which turn 10.03, 2.507 and 0.627 times in 63
    # positions. From 4 turns on a frequency is kept, up to 1 divided by 8, and mixed in between.
    scaling = rope.RopeScaling(kind="llama3", factor=8.0, original_max_position=63)
    keep = (63 / 4 / (2 * np.pi) - 1) / 3
    expected = [1.0, keep / 4 + (1 - keep) / 32, 1 / 128]
    np.testing.assert_allclose(rope.rope_frequencies(6, 64.0, scaling), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "keep"),
    [
        # Channel i turns 1000 * 10 ** -i times in 6283 positions: those that turn 9 and 0.5 times
        # are 2.05 and 3.30.
        pytest.param({}, [1, 1, 1, 0.5], id="borders rounded outwards, to 2 and 4"),
        pytest.param(
            {"truncate": False},
            # From log10(1000 / 9) to log10(1000 / 0.5), a width of log10(18).
            [1, 1, 1, 1 - np.log10(9) / np.log10(18)],
            id="borders as they are",
        ),
        # 400 and 50 times: channels 0.40 and 1.30.
        pytest.param(
            {"beta_fast": 400.0, "beta_slow": 50.0}, [1, 0.5, 0, 0], id="stretched fully behind"
        ),
        pytest.param({"beta_fast": 1e5}, [1, 0.75, 0.5, 0.25], id="no channel before the first"),
        pytest.param(
            {"beta_fast": 1e5, "beta_slow": 1e-6},
            [1, 6 / 7, 5 / 7, 4 / 7],
            id="and none behind the width of the head",
        ),
    ],
)
def test_yarn_by_hand(settings, keep):
    scaling = rope.RopeScaling(
        **{
            "kind": "yarn",
            "factor": 4.0,
            "original_max_position": 6283,
            "beta_fast": 9.0,
            "beta_slow": 0.5,
            **settings,
        }
    )
    plain = 10.0 ** -np.arange(4)
    expected = plain * (np.array(keep) + (1 - np.array(keep)) / 4)
    np.testing.assert_allclose(rope.rope_frequencies(8, 10_000.0, scaling), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "magnitude"),
    [
        pytest.param({"kind": "yarn"}, 0.1 * np.log(4.0) + 1.0, id="yarn grows with the factor"),
        pytest.param({"kind": "yarn", "attention_factor": 0.75}, 0.75, id="a magnitude as given"),
        pytest.param({"kind": "linear", "attention_factor": 0.75}, 1.0, id="yarn alone has one"),
    ],
)
def test_what_rotated_queries_and_keys_are_multiplied_with(settings, magnitude):
    scaling = rope.RopeScaling(factor=4.0, **settings)
    np.testing.assert_allclose(scaling.magnitude, magnitude, rtol=1e-12)
    found = rope.rotation(jnp.array([[0, 3]]), 4, 100.0, scaling)
    angles = 3 * rope.rope_frequencies(4, 100.0, scaling)
    np.testing.assert_allclose(found.sin[0, :, 0], [[0, 0], magnitude * np.sin(angles)], rtol=1e-5)
    np.testing.assert_allclose(found.cos[0, :, 0], magnitude * np.cos([[0, 0], angles]), rtol=1e-5)


def test_what_is_not_given_is_as_published():
    # Llama 3.1 and the paper of yarn; the length is that of Llama 3's first training.
    scaling = rope.RopeScaling(kind="yarn", factor=2.0)
    assert scaling.original_max_position == 8192
    assert (scaling.low_freq_factor, scaling.high_freq_factor) == (1.0, 4.0)
    assert (scaling.beta_fast, scaling.beta_slow) == (32.0, 1.0)
    assert (scaling.attention_factor, scaling.truncate) == (None, True)


def test_without_scaling_a_rotation_turns_by_the_plain_frequencies():
    found = rope.rotation(jnp.array([[0, 3]]), 4, 100.0)
    np.testing.assert_allclose(found.sin[0, :, 0], np.sin([[0, 0], [3, 0.3]]), rtol=1e-5)
    np.testing.assert_allclose(found.cos[0, :, 0], np.cos([[0, 0], [3, 0.3]]), rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"factor": 1.0}, None),
        ({"factor": 0.99}, "factor must be at least 1, got 0.99"),
        ({"low_freq_factor": 0.5, "high_freq_factor": 0.75}, None),
        ({"low_freq_factor": 0.0}, "low_freq_factor must be positive"),
        ({"low_freq_factor": 4.0}, "low_freq_factor must be positive and below"),
        ({"beta_slow": 0.5, "beta_fast": 0.75}, None),
        ({"beta_slow": 0.0}, "beta_slow must be positive"),
        ({"beta_slow": 2.0, "beta_fast": 2.0}, "beta_slow must be positive and below"),
        ({"attention_factor": 0.5}, None),
        ({"attention_factor": 0.0}, "attention_factor must be positive, got 0.0"),
        ({"original_max_position": 1}, None),
        ({"original_max_position": 0}, "original_max_position must be positive, got 0"),
    ],
    ids=str,
)
def test_settings_are_refused_from_their_bounds_on(settings, problem):
    def scaling():
        return rope.RopeScaling(**{"kind": "yarn", "factor": 2.0, **settings})

    if problem is None:
        scaling()
    else:
        with pytest.raises(config.ConfigError, match=problem):
            scaling()


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
