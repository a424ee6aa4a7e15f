"""A trained reward model as a reward function of reinforcement learning."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tunix.data import batching, tokenize
from tunix.data.preference import preference_batching, preference_tokens
from tunix.sft import frozen_model
from tunix.sft.dpo import reward_model

Prompt = str | Sequence[Mapping[str, Any]]
_LENGTHS = batching.length_buckets(1 << 20)


class RewardFunction:
    """Scores completions: ``fn(prompts, completions, **columns) -> list of rewards``.

    A completion is read as the pairs were that the model learned from: behind its prompt, as text
    or as the assistant's message, and with the token that ends it, also where it was cut off.

    Args:
        model: Its arrays are read anew at every call.
        tokenizer: A ``TokenizerAdapter``.
        batch_size: Completions computed together.
    """

    def __init__(
        self,
        model: reward_model.RewardModel,
        tokenizer: tokenize.Tokenizer,
        *,
        batch_size: int = 8,
    ):
        self._model = frozen_model.FrozenModel(model)
        self._tokenizer, self._batch_size = tokenizer, batch_size

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[str], **columns: Any
    ) -> list[float]:
        """Return one reward per completion; ``columns`` are not read."""
        del columns
        groups = [self._tokenize(*both) for both in zip(prompts, completions, strict=True)]
        found: list[float] = []
        for start in range(0, len(groups), self._batch_size):
            part = groups[start : start + self._batch_size]
            longest = max(len(prompt) + len(answer.tokens) for prompt, answer in part)
            rows = preference_batching.lay_out(
                [[(prompt, [answer])] for prompt, answer in part],
                num_rows=self._batch_size,
                length=batching.bucket_for(longest, _LENGTHS),
                num_answers=1,
                with_last=True,
            )
            rewards = self._model.compute(reward_model.RewardModel.rewards, rows)
            found += np.asarray(rewards)[: len(part), 0].tolist()
        return found

    def _tokenize(
        self, prompt: Prompt, completion: str
    ) -> tuple[np.ndarray, preference_tokens.Answer]:
        reply: Any = completion
        if not isinstance(prompt, str):
            reply = [{"role": "assistant", "content": completion}]
        return preference_tokens.tokenize_answer(prompt, reply, None, self._tokenizer)
