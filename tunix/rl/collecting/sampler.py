"""The engine as a collector sees it: prompts or tokens in, completions out, under a key."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, PRNGKeyArray

from tunix.generate import completion
from tunix.rl import rl_cluster
from tunix.rl.collecting import prompt_sampler, rollout_text
from tunix.rl.rollout import base_rollout, completion_check


class Sampler:
    """Samples for training.

    Args:
        cluster: Has the engine.
        config: How to sample.
        num_samples: Completions of every prompt.
    """

    def __init__(
        self,
        cluster: rl_cluster.RLCluster,
        config: base_rollout.RolloutConfig,
        *,
        num_samples: int,
    ):
        self._cluster, self.config, self.num_samples = cluster, config, num_samples

    def key(self, step: int, call: int) -> PRNGKeyArray:
        """Return the key of a call that a rollout makes; equal for no two of them."""
        return self._cluster.sampling_key(rl_cluster.Mode.TRAIN, step, call)

    def complete(
        self, prompts: prompt_sampler.Prompts, *, key: PRNGKeyArray
    ) -> base_rollout.RolloutOutput:
        """Return completions of every prompt.

        Raises:
            PromptError: Listing every prompt that is empty or too long.
        """
        with self._cluster.perf.span("rollout"):
            return self._cluster.generate(
                prompts,
                mode=rl_cluster.Mode.TRAIN,
                rollout_config=self.config,
                num_samples=self.num_samples,
                key=key,
            )

    def encode(self, prompts: prompt_sampler.Prompts) -> list[rollout_text.EncodedPrompt]:
        """Return every prompt with its token ids.

        Raises:
            PromptError: Listing every prompt that is empty or too long.
        """
        return rollout_text.encode_prompts(
            self._cluster.tokenizer,
            prompts,
            apply_chat_template=False,
            max_prompt_length=self.config.max_prompt_length,
        )

    def extend(
        self,
        token_ids: Sequence[Int[np.ndarray, " T"]],
        *,
        num_samples: int,
        max_tokens: int,
        key: PRNGKeyArray,
    ) -> base_rollout.RolloutOutput:
        """Return what comes after each of these tokens; the output has no texts."""
        cluster = self._cluster
        config = dataclasses.replace(self.config, max_tokens_to_generate=max_tokens)
        with cluster.perf.span("rollout"), cluster.on_device(rl_cluster.Role.ROLLOUT):
            completions = cluster.rollout.generate(
                [ids.tolist() for ids in token_ids], config, key=key, num_samples=num_samples
            )
        completion_check.check(
            completions,
            engine=type(cluster.rollout).__name__,
            count=len(token_ids) * num_samples,
            longest=max_tokens,
        )
        return base_rollout.RolloutOutput(
            prompts=[""] * len(token_ids),
            prompt_tokens=token_ids,
            completions=completions,
            text=[""] * len(completions),
        )

    def text(self, one: completion.Completion) -> str:
        """Return the text of a completion."""
        return rollout_text.completion_text(self._cluster.tokenizer, one)
