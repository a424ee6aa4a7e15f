"""The compiled functions of training: gradients of sums, one division, one guarded update.

All of them are pure functions of arrays. Nothing here knows what a batch is, what the loss
means or where metrics go.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from tunix.sft import loss_output as loss_output_lib
from tunix.sft.loop import train_state as train_state_lib
from tunix.utils import calls

Inputs = Mapping[str, Any]
"""Keyword arguments of the loss function for one micro-batch."""

LossFn = Callable[..., Any]
"""``loss_fn(model, **inputs)`` -> ``LossOutput``, scalar, or ``(scalar, aux)``."""

Metrics = dict[str, Array]
"""Scalars on the device."""

LEARNED, NONFINITE, EMPTY = 0, 1, 2
"""Values of the metric ``status``: the step updated the parameters, was skipped because loss or
gradient was not finite, or was skipped because nothing in it had any weight."""

RESERVED_METRICS = ("loss", "loss_weight", "grad_norm", "learning_rate", "status", "skipped_steps")


@flax.struct.dataclass
class Accumulator:
    """Sums over the micro-batches of a step so far."""

    grads: train_state_lib.Arrays
    output: loss_output_lib.LossOutput
    variables: train_state_lib.Arrays


@dataclasses.dataclass(frozen=True)
class StepFunctions:
    """The programs of one training run.

    A step is ``zeros``, ``accumulate`` for each of its micro-batches, then ``apply``: one program
    of the loss however many there are. Where a step always has one micro-batch, ``single`` needs
    less memory. A run that took both would compile the loss twice.
    """

    single: Callable[..., tuple[train_state_lib.TrainState, Metrics]]
    """``(state, frozen, inputs) -> (state, metrics)``; the state is donated."""
    zeros: Callable[..., Accumulator]
    """``(params, variables, frozen, inputs) -> accumulator`` before the first micro-batch. The
    inputs, those of any micro-batch or ``None``, only say what the loss returns."""
    accumulate: Callable[..., Accumulator]
    """``(accumulator, params, frozen, inputs) -> accumulator``; the accumulator is donated."""
    apply: Callable[..., tuple[train_state_lib.TrainState, Metrics]]
    """``(state, accumulator, weight) -> (state, metrics)``; the state is donated. ``weight`` is
    that of examples which have neither loss nor gradient, and are in no micro-batch."""
    evaluate: Callable[..., loss_output_lib.LossOutput]
    """``(params, variables, frozen, inputs) -> loss output`` in evaluation mode."""


def make_step_functions(
    split: train_state_lib.SplitModel,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    has_aux: bool = False,
    jit: bool = True,
    state_shardings: Any = None,
) -> StepFunctions:
    """Return the programs that train ``split`` on ``loss_fn``.

    Args:
        split: The static half of the model.
        loss_fn: Pure function of the model and one micro-batch.
        optimizer: Updates the parameters from the gradient of the mean loss.
        has_aux: Whether ``loss_fn`` returns ``(loss, aux)``.
        jit: False runs every operation on its own, for debugging.
        state_shardings: Where each array of the state lives, if it lives on a mesh.
    """

    def output_of(model: Any, inputs: Inputs) -> loss_output_lib.LossOutput:
        calls.require("loss function", loss_fn, ["model"], inputs)
        return loss_output_lib.as_loss_output(loss_fn(model, **inputs), has_aux=has_aux)

    def gradients(params, variables, frozen, inputs) -> Accumulator:
        def loss_sum(params):
            model = split.merge(params, variables, frozen)
            output = output_of(model, inputs)
            return output.loss_sum, (output, split.read_variables(model, variables))

        grads, (output, new_variables) = jax.grad(loss_sum, has_aux=True)(params)
        # float32 sums: micro-batches must add up exactly whatever the parameters' dtype is.
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
        return Accumulator(grads, output, new_variables)

    if jit:  # inlined: one trace serves `zeros` and `accumulate`, and the program is the same
        gradients = jax.jit(gradients, inline=True)

    def single(state, frozen, inputs):
        sums = gradients(state.params, state.variables, frozen, inputs)
        return apply_gradients(state, sums, optimizer)

    def accumulate(sums, params, frozen, inputs) -> Accumulator:
        more = gradients(params, sums.variables, frozen, inputs)
        grads = jax.tree.map(jnp.add, sums.grads, more.grads)
        return Accumulator(grads, sums.output.add(more.output), more.variables)

    def apply(state, sums, weight):
        output = dataclasses.replace(sums.output, weight_sum=sums.output.weight_sum + weight)
        return apply_gradients(state, dataclasses.replace(sums, output=output), optimizer)

    def evaluate(params, variables, frozen, inputs) -> loss_output_lib.LossOutput:
        model = split.merge(params, variables, frozen)
        model.eval()
        return output_of(model, inputs)

    functions = StepFunctions(single, _zeros, accumulate, apply, evaluate)
    if jit:
        functions = _jitted(functions, state_shardings)

    def zeros(params, variables, frozen, inputs) -> Accumulator:
        shapes = None
        if inputs is not None:
            arguments = (params, variables, frozen, inputs)
            # Without jit the loss may do what no tracing allows.
            found = jax.eval_shape(gradients, *arguments) if jit else gradients(*arguments)
            shapes = found.output
        return functions.zeros(params, variables, loss_output_lib.nothing(shapes))

    return dataclasses.replace(functions, zeros=zeros)


def _zeros(params, variables, output: loss_output_lib.LossOutput) -> Accumulator:
    grads = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    # Copied: sums are donated, and the variables are still those of the state.
    return Accumulator(grads, output, jax.tree.map(jnp.copy, variables))


def _jitted(functions: StepFunctions, state_shardings: Any) -> StepFunctions:
    jit_step, jit_sums = functools.partial(jax.jit, donate_argnums=0), jax.jit
    if state_shardings is not None:
        jit_step = functools.partial(jit_step, out_shardings=(state_shardings, None))
        # Sums lie where the first ones did, so that adding to them stays one program.
        places = Accumulator(
            state_shardings.params, state_shardings.step, state_shardings.variables
        )
        jit_sums = functools.partial(jit_sums, out_shardings=places)
    return StepFunctions(
        single=jit_step(functions.single),
        # All arguments are kept, so that the zeros are put where the parameters are.
        zeros=jit_sums(functions.zeros, keep_unused=True),
        accumulate=jit_sums(functions.accumulate, donate_argnums=0),
        apply=jit_step(functions.apply),
        evaluate=jax.jit(functions.evaluate),
    )


def apply_gradients(
    state: train_state_lib.TrainState, sums: Accumulator, optimizer: optax.GradientTransformation
) -> tuple[train_state_lib.TrainState, Metrics]:
    """Return the state after one optimizer step, and the metrics of the step.

    The gradient of the mean loss is the summed gradient over the summed weight. If it or the
    loss is not finite, or there is no weight, everything but the counters keeps its bits.
    """
    output = sums.output
    grad_norm = loss_output_lib.safe_ratio(optax.tree.norm(sums.grads), output.weight_sum)
    finite = _all_finite(output.loss_sum, output.weight_sum, grad_norm)
    has_weight = output.weight_sum > 0
    scale = 1.0 / output.weight_sum  # not read where that is 0

    def update():
        grads = jax.tree.map(lambda g, p: (g * scale).astype(p.dtype), sums.grads, state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return optax.apply_updates(state.params, updates), sums.variables, opt_state

    def keep():
        return state.params, state.variables, state.opt_state

    # A branch, not a select: a select would hold a second copy of the state to choose from.
    params, variables, opt_state = jax.lax.cond(finite & has_weight, update, keep)
    new_state = dataclasses.replace(
        state,
        params=params,
        variables=variables,
        opt_state=opt_state,
        step=state.step + 1,
        skipped=state.skipped + ~finite,
    )
    metrics = _named_metrics(output) | {
        "loss_weight": output.weight_sum,
        "grad_norm": grad_norm,
        "status": jnp.where(finite, jnp.where(has_weight, LEARNED, EMPTY), NONFINITE),
        "skipped_steps": new_state.skipped,
    }
    return new_state, metrics | learning_rate(opt_state)


def _all_finite(*scalars: Float[Array, ""]) -> Bool[Array, ""]:
    return jnp.isfinite(jnp.stack(scalars)).all()


def _named_metrics(output: loss_output_lib.LossOutput) -> Metrics:
    """Return the means of a loss and its metrics.

    Raises:
        ValueError: If a metric has the name of one that the trainer adds.
    """
    if taken := sorted({*output.metrics, *output.maxima} & set(RESERVED_METRICS)):
        raise ValueError(
            f"the loss function's metrics {taken} have names that the trainer uses itself; "
            f"rename them (taken: {', '.join(RESERVED_METRICS)})"
        )
    return output.finalize()


def learning_rate(opt_state: Any) -> Metrics:
    """Return the learning rate where the optimizer tells it (``optax.inject_hyperparams``)."""
    found = optax.tree.get_all_with_path(opt_state, "learning_rate")
    rates = [value for _, value in found if isinstance(value, jax.Array) and value.ndim == 0]
    return {"learning_rate": rates[0]} if len(rates) == 1 else {}
