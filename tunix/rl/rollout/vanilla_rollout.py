"""Sampling with the engine of this library, in the same process, where the model is."""

import contextlib
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from jaxtyping import PRNGKeyArray

from tunix.generate import completion, engine, sampling_params
from tunix.models.transformer import decoder
from tunix.rl.cluster import residency
from tunix.rl.rollout import base_rollout
from tunix.tokenizers import model_tokenizer, tokenizer_adapter


class VanillaRollout(base_rollout.BaseRollout):
    """The native engine: continuous batching, prompts of a group prefilled once."""

    takes_partial_updates = True

    def __init__(
        self,
        *,
        model: nnx.Module,
        tokenizer: tokenizer_adapter.TokenizerAdapter,
        cache_size: int,
        max_slots: int,
    ):
        """Copy the weights of ``model``; see the base class.

        Raises:
            TypeError: If ``model`` is not a decoder of this library.
        """
        if not isinstance(model, decoder.Decoder):
            raise TypeError(
                f"the vanilla rollout samples from tunix decoders, not {type(model).__name__}; "
                "set rollout_engine to a BaseRollout of your own for this model"
            )
        self._tokenizer = tokenizer
        self._unused = model_tokenizer.unused_ids(tokenizer, model.num_embed)
        self._engine = engine.Engine(model, max_slots=max_slots, cache_size=cache_size)
        self._num_leaves = len(nnx.to_flat_state(nnx.state(model)))
        self._part = residency.ArrayPart(lambda: self._engine.weights, self._engine.hold)
        self._devices = self._part.devices

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        rollout_config: base_rollout.RolloutConfig,
        *,
        key: PRNGKeyArray,
        num_samples: int = 1,
    ) -> list[completion.Completion]:
        """Return ``num_samples`` completions of each prompt; see the base class."""
        stops = rollout_config.eos_tokens
        params = sampling_params.SamplingParams(
            max_new_tokens=rollout_config.max_tokens_to_generate,
            temperature=rollout_config.temperature,
            top_k=rollout_config.top_k,
            top_p=rollout_config.top_p,
            stop_token_ids=tuple(self._tokenizer.eos_ids() if stops is None else stops),
        )
        # What the engine allocates is to be where its weights are, not on the first device of all.
        away = self._devices.isdisjoint(jax.devices()[:1])
        with jax.default_device(min(self._devices, key=_id)) if away else contextlib.nullcontext():
            return self._engine.generate(
                prompts,
                params,
                key=key,
                num_samples=num_samples,
                forbidden_tokens=self._unused,
            )

    def update_params(self, params: nnx.Module | nnx.State) -> None:
        """Copy new weights, some or all; they take effect at the next ``generate``."""
        if isinstance(params, nnx.State) and len(nnx.to_flat_state(params)) < self._num_leaves:
            self._engine.update(params)
        else:
            self._engine.sync(params)

    def weights(self) -> nnx.State:
        """Return the engine's copy of the weights."""
        return self._engine.weights.state

    def num_bytes(self) -> int:
        """Return what weights and cache take, whether or not they are there now."""
        return super().num_bytes() + self._engine.cache_bytes

    def offload(self) -> None:
        """Move the weights to host memory and free the cache."""
        self._part.offload()

    def load(self) -> None:
        """Move the weights back."""
        self._part.load()


def _id(device: Any) -> int:
    return device.id
