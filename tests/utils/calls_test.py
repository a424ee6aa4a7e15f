"""Functions of users that are called with other arguments than they take."""

import functools

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from tunix.rl import algorithm_config, function_registry
from tunix.rl.collecting import experience
from tunix.rl.grpo import grpo_config
from tunix.rl.ppo import ppo_config
from tunix.sft import peft_trainer
from tunix.utils import calls
from tunix.utils import config as config_lib


def two(a, b):
    return a + b


class Callable:
    def __call__(self, a):
        return a

    def method(self, a):
        return a


def any_of(*args, **kwargs):
    return None


@pytest.mark.parametrize(
    ("fn", "by_place", "by_name"),
    [
        pytest.param(two, ["x", "y"], [], id="by place"),
        pytest.param(two, ["x"], ["b"], id="by name"),
        pytest.param(any_of, ["x"], ["y"], id="whatever there is"),
        pytest.param(jax.jit(two), ["x", "y"], [], id="compiled"),
        pytest.param(functools.partial(two, 1), ["y"], [], id="one argument given before"),
        pytest.param(Callable(), ["x"], [], id="an object"),
        pytest.param(Callable().method, ["x"], [], id="a method"),
        pytest.param(Callable, [], [], id="a class"),
        pytest.param(max, ["x", "y"], [], id="without a signature"),
    ],
)
def test_a_function_that_fits_is_no_problem(fn, by_place, by_name):
    assert calls.fault(fn, by_place, by_name) is None


@pytest.mark.parametrize(
    ("fn", "by_place", "by_name", "expected"),
    [
        pytest.param(two, ["x"], [], "missing a required argument: 'b'; write def two(x)",
                     id="too few"),
        pytest.param(two, ["x"], ["b", "c"], "got an unexpected keyword argument 'c'; write def "
                     "two(x, *, b, c), with **kwargs in place of what it does not read",
                     id="another name"),
        pytest.param(jax.jit(two), ["x"], [], "two (calls_test.py:", id="compiled"),
        pytest.param(functools.partial(two, 1), ["x", "y"], [], "too many positional arguments",
                     id="one argument given before"),
        pytest.param(Callable(), [], [], "Callable (calls_test.py:", id="an object"),
        pytest.param(Callable().method, [], [], "method (calls_test.py:", id="a method"),
        pytest.param(3, ["x"], [], "3 is of type int, not a function", id="no function"),
    ],
)  # fmt: skip
def test_a_function_that_does_not_fit_is_told_how_it_is_called(fn, by_place, by_name, expected):
    assert expected in str(calls.fault(fn, by_place, by_name))


def trainer():
    config = peft_trainer.TrainingConfig(max_steps=1, eval_every_n_steps=1)
    return peft_trainer.PeftTrainer(nnx.Linear(2, 1, rngs=nnx.Rngs(0)), optax.sgd(0.1), config)


BATCH = {"x": np.ones((4, 2), np.float32), "y": np.ones((4, 1), np.float32)}


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        pytest.param(lambda model, x: 0.0, "got an unexpected keyword argument 'y'", id="too few"),
        pytest.param(lambda model, x, y, z: 0.0, "missing a required argument: 'z'", id="too many"),
        pytest.param(lambda x, y: 0.0, "multiple values for argument 'x'", id="no model"),
        pytest.param(lambda model, batch: 0.0, "missing a required argument: 'batch'", id="batch"),
    ],
)
def test_a_loss_that_takes_other_arguments_than_a_batch_has(loss, expected):
    with pytest.raises(TypeError) as caught:
        trainer().with_loss_fn(loss).train([BATCH])
    message = str(caught.value)
    assert message.startswith("loss function: <lambda> (calls_test.py:")
    assert expected in message
    assert "is called as <lambda>(model, x=..., y=...)" in message
    assert "write def <lambda>(model, *, x, y)" in message


@pytest.mark.parametrize(
    ("configure", "expected"),
    [
        pytest.param(lambda t: t.with_loss_fn(3), "loss function: 3 is of type int", id="a number"),
        pytest.param(
            lambda t: t.with_gen_model_input_fn(lambda: {}),
            "gen_model_input_fn: <lambda> (calls_test.py:",
            id="a batch that nobody takes",
        ),
        pytest.param(
            lambda t: t.with_gen_model_input_fn(lambda batch: 3).train([BATCH]),
            "gen_model_input_fn returned a value of type int; it must return",
            id="inputs that are none",
        ),
        pytest.param(
            lambda t: t.with_gen_model_input_fn(lambda batch: {1: 2}).train([BATCH]),
            "gen_model_input_fn returned a mapping with keys [1]",
            id="inputs without names",
        ),
        pytest.param(
            lambda t: t.with_eval_metrics(lambda: {}),
            "eval_metrics: <lambda> (calls_test.py:",
            id="metrics of no trainer",
        ),
    ],
)
def test_other_functions_of_a_trainer(configure, expected):
    with pytest.raises(TypeError) as caught:
        configure(trainer())
    assert expected in str(caught.value)


class WrongHooks:
    def on_train_start(self, train_ctx):
        pass

    def on_train_step_end(self, train_ctx, loss):
        pass


def test_hooks_are_told_of_every_method_that_does_not_fit():
    with pytest.raises(TypeError) as caught:
        trainer().with_training_hooks(WrongHooks())
    message = str(caught.value)
    assert message.startswith("training hooks WrongHooks: has no method on_eval_step_end(train_ctx")
    assert "on_train_step_end(train_ctx, train_step, train_loss, step_time)" in message
    assert "on_train_start" not in message
    with pytest.raises(TypeError, match="data hooks WrongHooks: has no method load_next_eval"):
        trainer().with_data_hooks(WrongHooks())


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (algorithm_config.AlgorithmConfig, "policy_loss_fn"),
        (algorithm_config.AlgorithmConfig, "loss_algo"),
        (algorithm_config.AlgorithmConfig, "loss_agg_mode"),
        (algorithm_config.AlgorithmConfig, "advantage_estimator"),
        (algorithm_config.AlgorithmConfig, "rollout_correction"),
        (algorithm_config.AlgorithmConfig, "reward_manager"),
        (grpo_config.GRPOConfig, "kl_estimator"),
        (ppo_config.PPOConfig, "kl_method"),
        (ppo_config.PPOConfig, "advantage_estimator"),
    ],
)
def test_a_function_of_an_algorithm_is_checked_with_the_settings(config, field):
    with pytest.raises(config_lib.ConfigError) as caught:
        config(**{field: lambda: 0.0})
    (problem,) = caught.value.problems
    assert problem.startswith(f"{field} <lambda> (calls_test.py:")
    assert "takes (), and is called as <lambda>(" in problem
    config(**{field: any_of})


def test_a_registered_loss_is_checked_where_it_is_named(monkeypatch):
    registry = function_registry.FunctionRegistry()
    monkeypatch.setattr(function_registry, "default_registry", registry)

    @registry.register("policy_loss_fn", "mine")
    def mine(log_ratio, advantages, mask, *, clip_low, clip_high):
        return log_ratio, {}

    algorithm_config.AlgorithmConfig(policy_loss_fn="mine")
    with pytest.raises(config_lib.ConfigError, match="keyword argument 'clip_dual'"):
        algorithm_config.AlgorithmConfig(policy_loss_fn="mine", epsilon_c=3.0)


def test_metric_functions_are_told_what_they_are_called_with():
    class Given:
        prompts, columns = ("a",), {"answer": [1]}

        class output:
            text = ("b",)

        class rewards:
            total = (1.0,)

    def mine(prompts, completions):
        return {}

    with pytest.raises(TypeError) as caught:
        list(experience.measured(Given, [], [mine]))
    assert "metric_fn: mine (calls_test.py:" in str(caught.value)
    assert "(*, prompts, completions, rewards, advantages, answer)" in str(caught.value)
    assert list(experience.measured(Given, [], [lambda **kwargs: {"m": len(kwargs)}])) == [{"m": 5}]
