"""What of a cluster moves between devices and host memory, and what goes with what.

Arrays that another model shares with the actor (the base model of LoRA runs) are the actor's:
they move once, with it, and whoever shares them brings it along.
"""

from collections.abc import Mapping
from typing import Any

from flax import nnx

from tunix.rl import reshard, trainer
from tunix.rl.cluster import residency
from tunix.rl.rollout import base_rollout

ACTOR, CRITIC, REFERENCE, REWARD, ROLLOUT = "actor", "critic", "reference", "reward", "rollout"
ACTOR_OPTIMIZER, CRITIC_OPTIMIZER = "actor optimizer", "critic optimizer"

TRAINED_ACTOR, TRAINED_CRITIC = (ACTOR, ACTOR_OPTIMIZER), (CRITIC, CRITIC_OPTIMIZER)


def make_residency(
    actor: trainer.Trainer,
    critic: trainer.Trainer | None,
    others: Mapping[str, nnx.Module],
    rollout: base_rollout.BaseRollout,
    rollout_devices: frozenset[reshard.Device],
) -> residency.Residency:
    """Return what moves the parts of a cluster.

    Args:
        actor: Trains the policy.
        critic: Trains the critic, if there is one.
        others: Models of other roles that are not the actor itself.
        rollout: Samples.
        rollout_devices: Where it does.
    """
    base = actor.frozen()
    tied: list[_Tied] = []
    needs: dict[str, tuple[str, ...]] = {}
    parts: dict[str, residency.Part] = {}
    if critic is not None:
        tied.append(_Tied.of(critic.frozen(), base, critic.replace_frozen))
        parts[CRITIC] = _critic_part(critic, tied[-1])
        parts[CRITIC_OPTIMIZER] = _optimizer_part(critic)
        needs[CRITIC] = (ACTOR,) if tied[-1].names else ()
    for role, model in others.items():
        module = _ModuleArrays(model)
        tied.append(_Tied.of(module.read(), base, module.write))
        parts[role] = _module_part(module, tied[-1])
        needs[role] = (ACTOR,) if tied[-1].names else ()

    def replace_actor(weights: Any) -> None:
        actor.replace_weights(weights)
        for one in tied:
            one.follow(weights[2])

    parts[ACTOR] = residency.ArrayPart(actor.weights, replace_actor)
    parts[ACTOR_OPTIMIZER] = _optimizer_part(actor)
    parts[ROLLOUT] = _RolloutPart(rollout, rollout_devices)
    return residency.Residency(parts, needs)


class _Tied:
    """Arrays that an owner shares with the actor: their names there, and in the actor."""

    def __init__(self, names: Mapping[Any, str], replace: Any):
        self.names, self._replace = dict(names), replace

    @classmethod
    def of(cls, arrays: Mapping[Any, Any], base: Mapping[str, Any], replace: Any) -> "_Tied":
        by_id = {id(array): name for name, array in base.items()}
        names = {name: by_id[id(x)] for name, x in arrays.items() if id(x) in by_id}
        return cls(names, replace)

    def follow(self, base: Mapping[str, Any]) -> None:
        """Hold what the actor holds now."""
        self._replace({name: base[theirs] for name, theirs in self.names.items()})

    def rest(self, arrays: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return those that are not shared."""
        return {name: x for name, x in arrays.items() if name not in self.names}


class _ModuleArrays:
    """The arrays of a module by path."""

    def __init__(self, module: nnx.Module):
        self._variables = {
            ".".join(map(str, path)): node
            for path, node in nnx.iter_graph(module)
            if isinstance(node, nnx.Variable)
        }

    def read(self) -> dict[str, Any]:
        return {name: variable.get_value() for name, variable in self._variables.items()}

    def write(self, arrays: Mapping[str, Any]) -> None:
        for name, array in arrays.items():
            self._variables[name].set_raw_value(array)


class _RolloutPart:
    """The engine moves its weights itself."""

    def __init__(self, rollout: base_rollout.BaseRollout, devices: frozenset[reshard.Device]):
        self.devices = devices
        self.offload, self.load = rollout.offload, rollout.load


def _module_part(module: _ModuleArrays, tied: _Tied) -> residency.ArrayPart:
    return residency.ArrayPart(lambda: tied.rest(module.read()), module.write)


def _critic_part(critic: trainer.Trainer, tied: _Tied) -> residency.ArrayPart:
    def read() -> Any:
        params, variables, frozen = critic.weights()
        return [params, variables, tied.rest(frozen)]

    return residency.ArrayPart(read, critic.replace_weights)


def _optimizer_part(owner: trainer.Trainer) -> residency.ArrayPart:
    return residency.ArrayPart(lambda: owner.state.opt_state, owner.replace_opt_state)
