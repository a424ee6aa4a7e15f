import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tunix.cli.schemas import optimizers
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


def test_warmup_stable_decay_keeps_the_peak_until_the_cooldown():
    kind = "warmup_stable_decay_schedule"
    assert rates(10, learning_rate=1.0, schedule_type=kind, warmup_steps=2, cooldown_ratio=0.4) == [
        0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0,
    ]  # fmt: skip
    early = rates(
        10, learning_rate=1.0, schedule_type=kind, decay_steps=5, cooldown_ratio=0.4, end_value=0.5
    )
    assert early == [1.0, 1.0, 1.0, 1.0, 0.75] + [0.5] * 6
    assert rates(10, learning_rate=1.0, schedule_type=kind)[8:] == [1.0, 1.0, 0.0]


CHANGES = {
    "adafactor": {"momentum": 0.5, "weight_decay": 0.3},
    "muon": {"b1": 0.5, "b2": 0.5, "eps": 1.0, "momentum": 0.5, "weight_decay": 0.3},
    "adam": {"b1": 0.5, "b2": 0.5, "eps": 1.0},
    "adamw": {"b1": 0.5, "b2": 0.5, "eps": 1.0, "weight_decay": 0.3},
    "lion": {"b1": 0.2, "b2": 0.2, "weight_decay": 0.3},
    "sgd": {"momentum": 0.5},
}


def after_three_steps(**raw):
    """Return parameters after three steps with gradients that differ."""
    optimizer = optimizers.make_optimizer(options(learning_rate=0.1, **raw), 10)
    params = {
        "layers.mlp.up_proj.w": jnp.array([[1.0, -2.0], [0.5, 3.0]]),
        "norm.scale": jnp.array([1.0, -2.0]),
    }
    state = optimizer.init(params)
    for a, b in ([3.0, 4.0], [-1.0, -0.02], [3.0, 0.2]):
        row = jnp.array([a, b])
        gradients = {"layers.mlp.up_proj.w": jnp.stack([row, row[::-1]]), "norm.scale": row}
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return {name: np.asarray(value) for name, value in params.items()}


def test_the_state_tells_the_rate_of_the_last_update_to_the_last_digit():
    plan = {"schedule_type": "warmup_linear_decay_schedule", "warmup_steps": 3}
    optimizer = optimizers.make_optimizer(options(learning_rate=0.3, **plan), 10)
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    state = optimizer.init(params)
    told = []
    for _ in range(4):
        _, state = optimizer.update(params, state, params)
        told.append(state.hyperparams["learning_rate"])
    assert {rate.dtype for rate in told} == {jnp.dtype("float32")}
    schedule = optimizers.make_schedule(options(learning_rate=0.3, **plan), 10)
    np.testing.assert_array_equal(told, [schedule(step) for step in range(4)])


def differ(one, other):
    return {name for name in one if not np.allclose(one[name], other[name], rtol=1e-6)}


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_every_setting_an_optimizer_reads_changes_it(name):
    plain = after_three_steps(opt_type=name)
    assert set(CHANGES[name]) == set(optimizers.OPTIMIZERS[name].reads) - {"decay_mask"}
    for field, value in CHANGES[name].items():
        assert differ(plain, after_three_steps(opt_type=name, **{field: value})), field


@pytest.mark.parametrize("name", ["adafactor", "adamw", "lion", "muon"])
def test_scales_of_norms_decay_only_when_asked_for(name):
    plain = after_three_steps(opt_type=name)
    decayed = after_three_steps(opt_type=name, weight_decay=0.3)
    assert differ(plain, decayed) == {"layers.mlp.up_proj.w"}
    if name != "muon":
        everything = after_three_steps(opt_type=name, weight_decay=0.3, decay_mask="all")
        assert differ(plain, everything) == {"layers.mlp.up_proj.w", "norm.scale"}


def test_weight_decay_takes_its_share_of_the_learning_rate():
    params = {"w": jnp.array([[2.0, -4.0]])}
    for name in ("adafactor", "adamw", "lion"):
        optimizer = optimizers.make_optimizer(
            options(opt_type=name, learning_rate=0.1, weight_decay=0.5), 1
        )
        zero = {"w": jnp.zeros((1, 2))}
        updates, _ = optimizer.update(zero, optimizer.init(params), params)
        np.testing.assert_allclose(updates["w"], [[-0.1, 0.2]], rtol=1e-6)


def test_muon_makes_the_update_of_every_stacked_matrix_orthogonal_and_leaves_the_rest_to_adam():
    optimizer = optimizers.make_optimizer(options(opt_type="muon", learning_rate=1.0), 1)
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "layers.mlp.up_proj.w": jax.random.normal(keys[0], (3, 4, 6)),
        "embed_tokens.w": jax.random.normal(keys[1], (5, 4)),
        "norm.scale": jax.random.normal(keys[2], (4,)),
    }
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    size = 0.2 * 6**0.5  # that of an Adam update: root mean square 0.2
    for matrix in np.asarray(updates["layers.mlp.up_proj.w"]):
        values = np.linalg.svd(matrix, compute_uv=False) / size
        assert (values > 0.6).all(), "Newton-Schulz brings singular values near 1"
        assert (values < 1.3).all()
    adam = optax.adamw(1.0, b2=0.99, weight_decay=0.0, nesterov=True)
    expected, _ = adam.update(params, adam.init(params), params)
    for name in ("embed_tokens.w", "norm.scale"):
        np.testing.assert_allclose(updates[name], expected[name], rtol=1e-5)


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
        ({"opt_type": "muon", "decay_mask": "all", "weight_decay": 1.0}, "does not read"),
        ({"decay_mask": "all"}, "give weight_decay with it"),
        ({"cooldown_ratio": 0.5}, "does not read"),
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
