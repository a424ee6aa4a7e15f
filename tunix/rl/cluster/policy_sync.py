"""Brings the actor's weights to the rollout: what changed, to the devices it is sampled on."""

from typing import Any

from flax import nnx
from jax.sharding import Mesh

from tunix.generate import weight_sync
from tunix.models import lora
from tunix.models.transformer import adapter
from tunix.models.transformer import sharding as sharding_lib
from tunix.rl import reshard, trainer
from tunix.rl.cluster import placement, weight_check
from tunix.rl.rollout import base_rollout

FlatState = dict[tuple[Any, ...], nnx.Variable]


class PolicySync:
    """The way from the actor to the rollout.

    Args:
        actor: Trains the policy.
        mesh: Where the rollout samples; ``None`` where the actor is.
    """

    def __init__(self, actor: trainer.Trainer, mesh: Mesh | None):
        self._actor = actor
        self._is_lora = lora.is_lora_enabled(actor.model)
        self._adapters = _adapters_of(actor.model)
        self._base: FlatState = {}
        self._targets: dict[tuple[Any, ...], Any] | None = None
        if mesh is not None and not placement.lives_on(actor.model, mesh):
            targets = sharding_lib.state_shardings(nnx.state(actor.model), mesh)
            self._targets = dict(nnx.to_flat_state(targets))

    @property
    def is_split(self) -> bool:
        """Whether the rollout is arranged in another way than the actor, or is elsewhere."""
        return self._targets is not None

    def model(self) -> nnx.Module:
        """Return the policy where the rollout samples: the actor itself, or a copy of it."""
        if self._targets is None:
            return self._actor.model
        graphdef, state = nnx.split(self._actor.model)
        return nnx.merge(graphdef, self._moved(dict(nnx.to_flat_state(state)))[0])

    def moves_part(self, rollout: base_rollout.BaseRollout) -> bool:
        """Return whether a sync leaves weights of the rollout as they are."""
        return self._is_lora and rollout.takes_partial_updates

    def keep_base(self, model: nnx.Module) -> None:
        """Keep what does not change of :meth:`model`, for an engine that wants all weights.

        Args:
            model: What :meth:`model` returned.
        """
        if self._is_lora and self.is_split:
            trained = self._trained()
            self._base = {p: v for p, v in nnx.to_flat_state(nnx.state(model)) if p not in trained}

    def __call__(self, rollout: base_rollout.BaseRollout, weights: nnx.State | None = None) -> int:
        """Give the rollout the actor's weights, and return how many bytes devices received.

        Args:
            rollout: Samples.
            weights: A copy of all weights that was made earlier; by default those of now.

        Raises:
            WeightMismatchError: If an adapter is not the one the rollout was made with.
        """
        if not self.is_split and not self.moves_part(rollout):
            rollout.update_params(self._actor.model if weights is None else weights)
            return 0
        self._check_adapters()
        trained = self._trained()
        flat = nnx.to_flat_state(self._state(weights))
        changed = {path: leaf for path, leaf in flat if path in trained}
        if not self.is_split:
            rollout.update_params(nnx.from_flat_state(changed.items()))
            return 0
        moved, report = self._moved(changed)
        if self._base:
            moved = nnx.from_flat_state((self._base | dict(nnx.to_flat_state(moved))).items())
        rollout.update_params(moved)
        return report.bytes_moved

    def check(self, rollout: base_rollout.BaseRollout, weights: nnx.State | None = None) -> None:
        """Compare the rollout's weights with what :meth:`__call__` was to give it.

        Raises:
            WeightSyncError: If they differ.
        """
        held = rollout.weights()
        assert held is not None  # checked when the cluster was made
        weight_check.check(self._state(weights), held)

    def _state(self, weights: nnx.State | None) -> nnx.State:
        return nnx.state(self._actor.model) if weights is None else weights

    def _trained(self) -> set[tuple[Any, ...]]:
        """Return the paths of what a step may change: all of it, or the adapters under LoRA."""
        flat = nnx.to_flat_state(nnx.state(self._actor.model))
        names = self._actor.state.params
        return {path for path, _ in flat if not self._is_lora or ".".join(map(str, path)) in names}

    def _moved(self, flat: FlatState) -> tuple[nnx.State, reshard.Moved]:
        assert self._targets is not None
        targets = nnx.from_flat_state([(path, self._targets[path]) for path in flat])
        return reshard.reshard_and_measure(nnx.from_flat_state(flat.items()), targets)

    def _check_adapters(self) -> None:
        found, known = _adapters_of(self._actor.model), self._adapters
        if found != known:
            raise weight_sync.WeightMismatchError(
                [
                    f"the adapter of {path} is {found.get(path)}, expected {known.get(path)}"
                    for path in sorted(found.keys() | known.keys())
                    if found.get(path) != known.get(path)
                ]
            )


def _adapters_of(model: nnx.Module) -> dict[str, adapter.AdapterSettings | None]:
    return {path: module.adapter for path, module in lora.iter_projections(model)}
