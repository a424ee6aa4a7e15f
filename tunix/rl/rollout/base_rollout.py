"""The seam between reinforcement learning and whatever samples: tokens in, tokens out."""

import abc
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from flax import nnx
from jaxtyping import Float, Int, PRNGKeyArray

from tunix.generate import completion
from tunix.sft import memory_estimate
from tunix.utils import config as config_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig(config_lib.Config):
    """How completions are sampled."""

    max_prompt_length: int = 256
    """A longer prompt is an error: nothing is cut silently."""

    temperature: float = 0.9
    """Divides the logits; part of the policy that is trained. 0 is greedy: evaluation only."""

    top_p: float | None = 1.0
    """Sample from the smallest set of likeliest tokens with at least this mass."""

    top_k: int | None = None
    """Sample from the k likeliest tokens; from all when unset."""

    eos_tokens: Sequence[int] | None = None
    """Tokens that end a completion; those the tokenizer names when unset."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        yield from config_lib.below_one(self, "max_prompt_length")
        if not 0.0 <= self.temperature < float("inf"):
            yield f"temperature must be 0 (greedy) or a positive number, got {self.temperature}"
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            yield f"top_p must lie in (0, 1], or be None to keep all tokens, got {self.top_p}"
        if self.top_k is not None and self.top_k < 1:
            yield f"top_k must be at least 1, or None to keep all tokens, got {self.top_k}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineOptions(config_lib.Config):
    """What every engine is told."""

    kv_cache_size: int | None = None
    """Tokens that a prompt and its completion may have together; their maxima when unset."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig(SamplingConfig, EngineOptions):
    """How completions are sampled, and how many tokens they have."""

    max_tokens_to_generate: int = 64
    """A completion that has not ended by then is cut off."""
    seed: int = 0
    """All draws of a run follow from it; no two calls draw alike."""
    return_logprobs: bool = True
    """Whether :attr:`RolloutOutput.logprobs` is filled for callers of ``RLCluster.generate``."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        yield from config_lib.below_one(self, "max_tokens_to_generate")
        if not isinstance(self.seed, int):
            yield f"seed must be an integer, got {self.seed!r}"
        needed = self.max_prompt_length + self.max_tokens_to_generate
        if self.kv_cache_size is not None and self.kv_cache_size < needed:
            yield (
                f"kv_cache_size {self.kv_cache_size} is too small for max_prompt_length "
                f"{self.max_prompt_length} and max_tokens_to_generate "
                f"{self.max_tokens_to_generate}; raise it to {needed}"
            )

    @property
    def cache_size(self) -> int:
        """Tokens that a prompt and its completion may have together."""
        if self.kv_cache_size is not None:
            return self.kv_cache_size
        return self.max_prompt_length + self.max_tokens_to_generate


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutOutput:
    """Completions, prompt-major: the samples of a prompt stand together."""

    prompts: Sequence[str]
    """Text of each prompt, as the chat template renders it."""
    prompt_tokens: Sequence[Int[np.ndarray, " P"]]
    """Token ids of each prompt."""
    completions: Sequence[completion.Completion]
    text: Sequence[str]
    """Text of each completion, without the token that ended it."""
    has_logprobs: bool = True

    @property
    def tokens(self) -> list[Int[np.ndarray, " T"]]:
        """Token ids of each completion."""
        return [one.token_ids for one in self.completions]

    @property
    def logprobs(self) -> list[Float[np.ndarray, " T"]] | None:
        """Log-probabilities of the tokens under the policy at the sampling temperature."""
        return [one.logps for one in self.completions] if self.has_logprobs else None


class BaseRollout(abc.ABC):
    """An engine that samples from a copy of the policy.

    Text never crosses this interface: decoded and encoded again it would give other ids
    than those that were sampled, and training would learn the wrong tokens.

    Three methods may be left out: :meth:`weights`, without which ``verify_weight_sync`` cannot be
    set, and :meth:`offload` and :meth:`load`, without which ``offload_to_cpu`` cannot.
    """

    takes_partial_updates: ClassVar[bool] = False
    """Whether :meth:`update_params` also takes a state of some of the weights, and leaves the
    others as they are. With LoRA only the adapters are sent then."""

    @abc.abstractmethod
    def __init__(
        self,
        *,
        model: nnx.Module,
        tokenizer: Any,
        cache_size: int,
        max_slots: int,
    ):
        """Prepare to sample from ``model``.

        Args:
            model: The policy, on the devices that the engine shall use; its weights now are
                version 0.
            tokenizer: A ``TokenizerAdapter``; says which tokens end a completion.
            cache_size: Tokens that a prompt and its completion may have together.
            max_slots: Completions that are decoded at the same time.
        """

    @abc.abstractmethod
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        rollout_config: RolloutConfig,
        *,
        key: PRNGKeyArray,
        num_samples: int = 1,
    ) -> list[completion.Completion]:
        """Return ``num_samples`` completions of each prompt, those of a prompt adjacent.

        Equal keys, prompts and weights give equal completions. ``Completion.logps`` are those
        of the policy at the sampling temperature, before top-k and top-p: what the trainer
        computes again; one that is missing or not finite is an error of the engine.
        """

    @abc.abstractmethod
    def update_params(self, params: nnx.Module | nnx.State) -> None:
        """Copy new weights; they take effect at the next ``generate``."""

    def weights(self) -> nnx.State | None:
        """Return the weights that are sampled from, named as in the model, layers unrolled or not.

        ``None`` if the engine does not show them.
        """
        return None

    def num_bytes(self) -> int:
        """Return what the engine takes of its own: the weights it shows, and caches it knows of."""
        return memory_estimate.num_bytes(self.weights())

    def offload(self) -> None:
        """Move the weights to host memory and free all caches; ``generate`` is not called then."""
        raise NotImplementedError(f"{type(self).__name__} cannot leave its devices")

    def load(self) -> None:
        """Undo :meth:`offload`, bit for bit.

        Not called if :meth:`update_params` comes first with all weights.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot leave its devices")
