import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tunix.cli import optimizers
from tunix.utils import config


def options(**raw):
    return optimizers.OptimizerOptions(**raw)


def rates(total_steps=10, **raw):
    schedule = optimizers.make_schedule(options(**raw), total_steps)
    return [round(float(schedule(step)), 6) for step in range(total_steps + 1)]


def test_constant_is_the_default():
    assert rates(2, learning_rate=0.5) == [0.5, 0.5, 0.5]
    assert options().peak == 1e-5


def test_linear_warmup_then_constant():
    assert rates(
        4, learning_rate=1.0, schedule_type="warmup_constant_schedule", warmup_steps=2
    ) == [0.0, 0.5, 1.0, 1.0, 1.0]


def test_linear_decay_ends_at_the_end_of_the_run():
    kind = "warmup_linear_decay_schedule"
    assert rates(4, learning_rate=1.0, schedule_type=kind, warmup_ratio=0.5, end_value=0.5) == [
        0.0,
        0.5,
        1.0,
        0.75,
        0.5,
    ]


def test_cosine_agrees_with_optax():
    theirs = optax.warmup_cosine_decay_schedule(0.1, 1.0, 3, 8, 0.2)
    ours = rates(
        10,
        schedule_type="warmup_cosine_decay_schedule",
        init_value=0.1,
        peak_value=1.0,
        warmup_steps=3,
        decay_steps=8,
        end_value=0.2,
    )
    np.testing.assert_allclose(ours, [theirs(step) for step in range(11)], atol=1e-6)


CHANGES = {
    "adam": {"b1": 0.5, "b2": 0.5, "eps": 1.0},
    "adamw": {"b1": 0.5, "b2": 0.5, "eps": 1.0, "weight_decay": 0.3},
    "lion": {"b1": 0.2, "b2": 0.2, "weight_decay": 0.3},
    "sgd": {"momentum": 0.5},
}


def after_three_steps(**raw):
    """Return a parameter after three steps with gradients that differ."""
    optimizer = optimizers.make_optimizer(options(learning_rate=0.1, **raw), 10)
    params = jnp.array([1.0, -2.0])
    state = optimizer.init(params)
    for gradient in ([3.0, 4.0], [-1.0, -0.02], [3.0, 0.2]):
        updates, state = optimizer.update(jnp.array(gradient), state, params)
        params = optax.apply_updates(params, updates)
    return np.asarray(params)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_every_setting_an_optimizer_reads_changes_it(name):
    plain = after_three_steps(opt_type=name)
    assert set(CHANGES[name]) == set(optimizers.OPTIMIZERS[name].reads)
    for field, value in CHANGES[name].items():
        assert not np.allclose(plain, after_three_steps(opt_type=name, **{field: value})), field


def test_clipping_scales_the_gradient_to_the_norm():
    optimizer = optimizers.make_optimizer(
        options(opt_type="sgd", learning_rate=1.0, max_grad_norm=0.5), 1
    )
    params = jnp.zeros(2)
    updates, _ = optimizer.update(jnp.array([3.0, 4.0]), optimizer.init(params), params)
    np.testing.assert_allclose(updates, [-0.3, -0.4], rtol=1e-6)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"opt_type": "adamww"}, r"opt_type 'adamww' is not one of .* \(did you mean 'adamw'\?\)"),
        ({"opt_type": "adam", "weight_decay": 0.1}, r"'adam' does not read \['weight_decay'\]"),
        ({"schedule_type": "cosine"}, "schedule_type 'cosine' is not one of"),
        ({"warmup_steps": 3}, r"'constant_schedule' does not read \['warmup_steps'\]"),
        ({"learning_rate": 1.0, "value": 2.0}, r"but differ: \[1.0, 2.0\]"),
        ({"b1": 1.0}, r"b1 must lie in \[0, 1\), got 1.0"),
        ({"learning_rate": -1.0}, "learning_rate must not be negative, got -1.0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be positive, got 0.0"),
        (
            {
                "schedule_type": "warmup_constant_schedule",
                "warmup_steps": 1,
                "warmup_ratio": 0.1,
            },
            "give one",
        ),
        (
            {"schedule_type": "warmup_linear_decay_schedule", "init_value": 0.1},
            "give warmup_steps or warmup_ratio with it",
        ),
        (
            {
                "schedule_type": "warmup_linear_decay_schedule",
                "warmup_steps": 5,
                "decay_steps": 5,
            },
            "decay_steps 5 counts the warm-up",
        ),
    ],
)
def test_settings_that_cannot_be_meant(raw, message):
    with pytest.raises(config.ConfigError, match=message):
        options(**raw)
