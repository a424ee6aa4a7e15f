"""The text interface of samplers: strings in, strings and their tokens out.

A thin wrapper: what samples is token in, token out (:mod:`tunix.generate.engine`).
"""

import abc
import dataclasses
from collections.abc import Sequence

import numpy as np
from flax import nnx
from jaxtyping import Float, Int


@dataclasses.dataclass(kw_only=True)
class SamplerOutput:
    """Continuations of a batch of prompts."""

    text: list[str]
    """Without the token that ended the continuation; with the prompt if it was echoed."""

    tokens: list[Int[np.ndarray, " T"]] | Int[np.ndarray, "B T"]
    """With the token that ended it. An array, padded on the right, if asked for."""

    logprobs: list[Float[np.ndarray, " T"]]
    """Log-probability of every generated token under the policy ``softmax(logits / temperature)``
    of the whole vocabulary (temperature 1 where decoding is greedy)."""

    logits: list[Float[np.ndarray, "T V"]] | None
    """Logits that predicted each generated token, if asked for."""

    padded_prompt_tokens: Int[np.ndarray, "B P"]
    """The prompts, padded on the left."""


class BaseSampler(abc.ABC):
    """Samples text from a model."""

    @property
    @abc.abstractmethod
    def transformer(self) -> nnx.Module:
        """The model that is sampled from."""

    @property
    @abc.abstractmethod
    def transformer_state(self) -> nnx.State:
        """Its weights."""

    @abc.abstractmethod
    def __call__(
        self,
        input_strings: str | Sequence[str],
        max_generation_steps: int,
        max_prompt_length: int | None = None,
        echo: bool = False,
        return_logits: bool = False,
        eos_tokens: Sequence[int] | None = None,
        forbidden_tokens: Sequence[int] | None = None,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        pad_output: bool = False,
    ) -> SamplerOutput:
        """Continue each of ``input_strings`` by up to ``max_generation_steps`` tokens."""

    @abc.abstractmethod
    def tokenize(self, input_string: str) -> Int[np.ndarray, " T"]:
        """Return the token ids of a prompt."""
