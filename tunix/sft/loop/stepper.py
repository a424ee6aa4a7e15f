"""Runs training steps: owns the arrays of a run and the programs that change them."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tunix.models.transformer import token_ids
from tunix.sft import inflight_throttler, loss_output, sharding_utils
from tunix.sft.loop import nonfinite, step_handle, train_state, train_step


class Stepper:
    """The arrays of a model and its optimizer, and how one step follows the other.

    Args:
        model: The model; after every step it holds the new arrays.
        optimizer: Gets the gradient of the mean loss of each step.
        loss_fn: ``loss_fn(model, **inputs)``.
        max_inflight: Steps dispatched and not yet finished.
        data_sharding_axis: Mesh axes that the rows of a batch are split over.
        dump_directory: Where batches of non-finite steps go, if anywhere.
        accumulates: Whether steps may have another number of micro-batches than one. They do
            from the first one that has.
    """

    def __init__(
        self,
        model: nnx.Module,
        optimizer: optax.GradientTransformation,
        loss_fn: train_step.LossFn,
        *,
        max_inflight: int,
        data_sharding_axis: tuple[str, ...],
        dump_directory: pathlib.Path | None,
        accumulates: bool,
    ):
        self.model = model
        self.loss_fn = loss_fn
        self._optimizer = optimizer
        self._has_aux, self._jit = False, True
        self._accumulates = accumulates
        self._example: Any = None
        self._is_checked = False
        self._metric_names: set[str] = {"loss", "loss_weight", "grad_norm"}
        self._data_sharding_axis = tuple(data_sharding_axis)
        self._throttler = inflight_throttler.InflightThrottler(max_inflight)
        self.watch = nonfinite.SkippedStepWatch(dump_directory, max_inflight)
        self._functions: train_step.StepFunctions | None = None
        self._computed: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._num_embeddings = token_ids.num_embeddings(model)
        self._split, params, variables = train_state.split_model(model)
        arrays = (params, self._split.frozen)
        self.mesh = sharding_utils.mesh_of(arrays) or sharding_utils.active_mesh()
        self.state = train_state.create_train_state(params, variables, optimizer, mesh=self.mesh)
        self._split.write_back(self.state)

    @property
    def frozen(self) -> train_state.Arrays:
        """The parameters that are not trained."""
        return self._split.frozen

    def set_loss(self, loss_fn: train_step.LossFn, *, has_aux: bool) -> None:
        """Train on another loss."""
        self.loss_fn, self._has_aux = loss_fn, has_aux
        self._functions = None

    def set_jit(self, jit: bool) -> None:
        """Compile the steps, or run every operation on its own."""
        if jit != self._jit:
            self._jit = jit
            self._functions = None

    def clear_jit_cache(self) -> None:
        """Have the programs traced again."""
        self._functions = None

    def replace_state(self, state: train_state.TrainState) -> None:
        """Continue from other arrays, e.g. those of a checkpoint."""
        self.state = state
        self.write_back()

    def write_back(self) -> None:
        """Let the model hold the current arrays."""
        self._split.write_back(self.state)

    def replace_frozen(self, arrays: train_state.Arrays) -> None:
        """Keep parameters that are not trained in other arrays with the same values."""
        # In place: compiled steps hold on to this table.
        self._split.frozen.update(arrays)
        for name, array in arrays.items():
            self._split.owners[name].set_raw_value(array)

    def read_model(self) -> None:
        """Take the model's arrays and structure as they are now; the optimizer's state stays."""
        split, params, variables = train_state.split_model(self.model)
        if split.graphdef != self._split.graphdef:
            self._functions = None
            self._computed.clear()
        self._split = split
        self.replace_state(dataclasses.replace(self.state, params=params, variables=variables))

    def step(
        self, number: int, micro_batches: Sequence[Mapping[str, Any]], weight: float
    ) -> train_step.Metrics:
        """Dispatch one optimizer step and return its metrics while they are being computed.

        Args:
            number: Of the step, for messages.
            micro_batches: What the loss is computed of; without any, no forward pass runs.
            weight: Of examples that have neither loss nor gradient, beside the micro-batches.
        """
        self._throttler.wait_for_next()
        if not micro_batches and not weight:
            return self._empty_step(number)
        if not self._is_checked:  # the check that saving needs: later steps must not compile it
            self._is_checked = True
            self.require_finite(number - 1)
        functions, state, frozen = self._step_functions(), self.state, self._split.frozen
        placed = [self._placed(batch) for batch in micro_batches]
        self._accumulates |= len(placed) != 1 or weight > 0
        if not self._accumulates:
            self.state, metrics = functions.single(state, frozen, placed[0])
        else:
            if placed:
                self._example = jax.tree.map(_shape_of, placed[0])
            sums = functions.zeros(state.params, state.variables, frozen, self._example)
            for batch in placed:
                sums = functions.accumulate(sums, state.params, frozen, batch)
            self.state, metrics = functions.apply(state, sums, np.float32(weight))
        self._metric_names |= metrics.keys()
        self.write_back()
        self._throttler.add_computation(metrics["loss"])
        skipped = self.watch.skipped
        self.watch.add(step_handle.StepHandle(number, metrics), micro_batches)
        if self.watch.skipped > skipped:  # by its batch, or because no batch can be learned now
            self.require_finite(number)
        return metrics

    def _empty_step(self, number: int) -> train_step.Metrics:
        """Count a step that changes nothing, on the host: no program runs."""
        state = self.state
        steps, skipped = jax.device_get((state.step, state.skipped))
        step = self._put(np.asarray(steps + 1, steps.dtype), state.step)
        self.state = dataclasses.replace(state, step=step)
        rate = jax.device_get(train_step.learning_rate(state.opt_state))
        metrics = dict.fromkeys(self._metric_names, np.float32(0.0)) | rate
        metrics |= {"status": np.int32(train_step.EMPTY), "skipped_steps": skipped}
        self.watch.add(step_handle.StepHandle(number, metrics), [])
        return metrics

    def zeros_like(self, arrays: Any) -> Any:
        """Return zeros where ``arrays`` are; no program runs."""
        return jax.tree.map(lambda x: self._put(np.zeros(x.shape, x.dtype), x), arrays)

    def _put(self, values: np.ndarray, like: jax.Array) -> jax.Array:
        return jax.device_put(values, None if self.mesh is None else like.sharding)

    def evaluate(self, inputs: Mapping[str, Any]) -> loss_output.LossOutput:
        """Dispatch the loss of one batch in evaluation mode and return its sums."""
        state = self.state
        return self._step_functions().evaluate(
            state.params,
            state.variables,
            self._split.frozen,
            self._placed(inputs, replicate_uneven=True),
        )

    def compute(self, fn: Callable[..., Any], inputs: Mapping[str, Any]) -> Any:
        """Dispatch ``fn(model, **inputs)`` in evaluation mode, without gradient.

        Args:
            fn: A pure function of the model and one micro-batch; compiled once.
            inputs: Its keyword arguments, placed like those of a loss.
        """
        if fn not in self._computed:
            split = self._split

            def run(params: Any, variables: Any, frozen: Any, inputs: Mapping[str, Any]) -> Any:
                model = split.merge(params, variables, frozen)
                model.eval()
                return fn(model, **inputs)

            self._computed[fn] = jax.jit(run)
        state = self.state
        placed = self._placed(inputs, replicate_uneven=True)
        return self._computed[fn](state.params, state.variables, self._split.frozen, placed)

    def require_finite(self, step: int) -> None:
        """Raise ``DivergedError`` if what training changes holds NaN or infinity after ``step``."""
        nonfinite.require_finite({**self.state.params, **self.state.variables}, step)

    def require_learned(self, step: int) -> None:
        """Wait for all steps; raise ``DivergedError`` if the training ended in no numbers."""
        self.wait()
        self.require_finite(step)
        self.watch.require_learned(int(self.state.step), int(self.state.skipped))

    def report_skipped(self) -> None:
        """Wait until the status of every step is known, and report those that were skipped."""
        self.watch.flush()

    def wait(self) -> None:
        """Wait for all steps in flight and report those that were skipped."""
        self._throttler.wait_for_all()
        self.report_skipped()

    def _step_functions(self) -> train_step.StepFunctions:
        if self._functions is None:
            on_mesh = self.mesh is not None
            shardings = jax.tree.map(lambda x: x.sharding, self.state) if on_mesh else None
            self._functions = train_step.make_step_functions(
                self._split,
                self.loss_fn,
                self._optimizer,
                has_aux=self._has_aux,
                jit=self._jit,
                state_shardings=shardings,
            )
        return self._functions

    def _placed(self, inputs: Mapping[str, Any], *, replicate_uneven: bool = False) -> Any:
        """Return a batch with its rows split over the mesh, if there is one.

        Raises:
            TokenIdError: If the model has no embedding for one of its tokens.
        """
        token_ids.require(inputs, self._num_embeddings)
        if not self._jit:  # a compiled function does this by itself
            inputs = jax.tree.map(jnp.asarray, dict(inputs))
        if self.mesh is None:
            return dict(inputs)
        return sharding_utils.shard_input(
            dict(inputs),
            self._data_sharding_axis,
            mesh=self.mesh,
            replicate_uneven=replicate_uneven,
        )


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))
