"""Sampling with the engine of this library, in the same process and on the same devices."""

from collections.abc import Sequence

from flax import nnx
from jaxtyping import PRNGKeyArray

from tunix.generate import completion, engine, sampling_params, tokenizer_adapter
from tunix.models.transformer import decoder
from tunix.rl.rollout import base_rollout


class VanillaRollout(base_rollout.BaseRollout):
    """The native engine: continuous batching, prompts of a group prefilled once."""

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
        self._engine = engine.Engine(model, max_slots=max_slots, cache_size=cache_size)

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
        return self._engine.generate(prompts, params, key=key, num_samples=num_samples)

    def update_params(self, params: nnx.Module | nnx.State) -> None:
        """Copy new weights; they take effect at the next ``generate``."""
        self._engine.sync(params)
