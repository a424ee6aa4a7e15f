"""Forward passes of models that take part in training without being trained."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from tunix.rl import common
from tunix.rl.reward_fns import reward_model
from tunix.sft import frozen_model
from tunix.sft.dpo import reward_model as reward_model_lib


class InferenceWorker:
    """Computes log-probabilities under the reference policy, and the scores of a reward model.

    Every model is used where it lives: batches are moved there, results stay there.

    Args:
        models: Models by role; ``reference`` and ``reward`` are known.
        adapters: Whether the reference computes with its LoRA adapters. False makes the
            actor of a LoRA run its own reference: no second copy of the weights.
        data_sharding_axis: Mesh axes that the rows of a batch are split over, where a model's mesh
            has them.
    """

    def __init__(
        self,
        models: Mapping[str, nnx.Module],
        *,
        adapters: bool = True,
        data_sharding_axis: Iterable[str] = (),
    ):
        self._adapters = adapters
        self._reward: reward_model.ModelReward | None = None
        axes = tuple(data_sharding_axis)
        self._models = {
            role: frozen_model.FrozenModel(model, data_sharding_axis=axes)
            for role, model in models.items()
        }
        self.places = {role: model.place for role, model in self._models.items()}
        """Where the models are when they are in use."""

    def get_model(self, role: str) -> nnx.Module:
        """Return the model of a role.

        Raises:
            ValueError: If no model has it.
        """
        if role not in self._models:
            raise ValueError(f"no model has the role {role!r}; there are {sorted(self._models)}")
        return self._models[role].model

    def get_ref_per_token_logps(self, batch: common.PolicyBatch) -> Float[Array, " N"]:
        """Return the reference's log-probabilities of the predicted tokens of ``batch``."""
        self.get_model("reference")
        return self._models["reference"].compute(self._logps, batch)

    def _logps(self, model: Any, batch: common.PolicyBatch) -> Float[Array, " N"]:
        return common.policy_logps(model, batch, adapters=self._adapters).logps

    def get_rewards(
        self,
        prompt_ids: Sequence[Int[np.ndarray, " P"]],
        completion_ids: Sequence[Int[np.ndarray, " T"]],
    ) -> list[float]:
        """Return the reward model's score of each completion, in the light of its prompt.

        Raises:
            TypeError: If the model of the role is not one that ``RewardTrainer`` trains.
        """
        if self._reward is None:
            model = self.get_model("reward")
            if not isinstance(model, reward_model_lib.RewardModel):
                raise TypeError(
                    f"the reward model must be a RewardModel, not {type(model).__name__}; give "
                    "the learner a reward function that calls a model of your own"
                )
            self._reward = reward_model.ModelReward(reward_model.RewardModelScores(model))
        return self._reward(prompt_ids, completion_ids)
