"""A model as arrays: split once, trained as flat tables of arrays, written back into the model."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from tunix.models.transformer import adapter as adapter_lib
from tunix.sft import utils as sft_utils

Arrays = dict[str, Any]
"""Arrays by the dotted name of their variable, e.g. ``layers.self_attn.q_proj.w``."""


@flax.struct.dataclass
class TrainState:
    """Everything that a training step changes; steps take it donated and return the next one.

    A checkpoint stores exactly this, plus the position in the data.
    """

    params: Arrays
    """The trained parameters."""
    variables: Arrays
    """What else a forward pass changes: random streams of the model, batch statistics."""
    opt_state: Any
    step: Int[Array, ""]
    """Optimizer steps taken, skipped ones included."""
    skipped: Int[Array, ""]
    """Steps that changed nothing because loss or gradient was not finite."""


@dataclasses.dataclass(frozen=True)
class SplitModel:
    """The static half of a model, and the arrays that training does not change.

    The graph is split once, here; inside compiled functions :meth:`merge` puts it together
    with traced arrays.
    """

    graphdef: Any
    paths: dict[str, tuple[Any, ...]]
    """Where in the graph each name lives."""
    frozen: Arrays
    """Parameters that are not trained: the base model of a LoRA run, quantised or not, and
    adapters that are parked. Never donated, so other holders of these arrays (a reference
    model, a sampler) keep them."""
    owners: dict[str, nnx.Variable]
    """The model's own variables, by name."""

    def merge(self, params: Arrays, variables: Arrays, frozen: Arrays) -> Any:
        """Return a model that holds these arrays; cheap, meant for inside ``jax.jit``."""
        named = {**params, **variables, **frozen}
        flat = [(path, named[name]) for name, path in self.paths.items()]
        return nnx.merge(self.graphdef, nnx.from_flat_state(flat))

    def read_variables(self, model: Any, names: Arrays) -> Arrays:
        """Return the values that a forward pass left in the variables ``names`` of ``model``."""
        if not names:
            return {}
        flat = {_name(path): variable for path, variable in nnx.to_flat_state(nnx.state(model))}
        return {name: flat[name].get_value() for name in names}

    def write_back(self, state: TrainState) -> None:
        """Let the model hold the arrays of ``state``; nothing is copied."""
        for arrays in (state.params, state.variables):
            for name, array in arrays.items():
                self.owners[name].set_raw_value(array)


def trainable_filter(model: nnx.Module) -> Any:
    """Return which variables are trained: the adapters if there are any, else all parameters."""
    return nnx.LoRAParam if sft_utils.is_lora_enabled(model) else nnx.Param


def split_model(model: nnx.Module) -> tuple[SplitModel, Arrays, Arrays]:
    """Split a model into its static half, its trained parameters and its other variables.

    The last two are copies, which the model then holds in place of the originals: steps donate
    them, and an array that something else shares must not disappear.

    Raises:
        ValueError: If the model has no parameters.
    """
    graphdef, state = nnx.split(model)
    paths = {_name(path): path for path, _ in nnx.to_flat_state(state)}
    owners = {
        _name(path): node for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Variable)
    }
    is_trained = nnx.filterlib.to_predicate(trainable_filter(model))
    is_param = nnx.filterlib.to_predicate(nnx.Param)
    params: Arrays = {}
    variables: Arrays = {}
    frozen: Arrays = {}
    for name, path in paths.items():
        variable = owners[name]
        is_frozen = isinstance(variable, adapter_lib.Frozen)
        if is_frozen or (is_param(path, variable) and not is_trained(path, variable)):
            frozen[name] = jnp.asarray(variable.get_value())
            continue
        array = jnp.copy(variable.get_value())
        variable.set_value(array)
        (params if is_trained(path, variable) else variables)[name] = array
    if not params:
        raise ValueError(
            f"{type(model).__name__} has no parameters to train: no nnx.Param among its "
            f"{len(paths)} variables"
        )
    return SplitModel(graphdef, paths, frozen, owners), params, variables


def create_train_state(
    params: Arrays,
    variables: Arrays,
    optimizer: optax.GradientTransformation,
    *,
    mesh: Mesh | None = None,
) -> TrainState:
    """Return the state before the first step.

    On a mesh everything lives there: what is not sharded is on every device of it, so that the
    second step finds its inputs where the first one did.
    """
    state = TrainState(
        params=params,
        variables=variables,
        opt_state=optimizer.init(params),
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
    )
    return state if mesh is None else _on_mesh(state, mesh)


def _on_mesh(state: TrainState, mesh: Mesh) -> TrainState:
    everywhere = NamedSharding(mesh, PartitionSpec())

    def place(leaf: Any) -> Any:
        on_mesh = isinstance(leaf.sharding, NamedSharding) and leaf.sharding.mesh == mesh
        return leaf if on_mesh else jax.device_put(leaf, everywhere)

    return jax.tree.map(place, state)


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))
