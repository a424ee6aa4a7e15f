"""From prompts to completions: keys, chat templates, limits, the engine."""

import itertools
from collections.abc import Mapping, Sequence

import jax
from jaxtyping import PRNGKeyArray

from tunix.rl import roles
from tunix.rl.cluster import cluster_config
from tunix.rl.collecting import rollout_text
from tunix.rl.rollout import base_rollout, completion_check
from tunix.tokenizers import tokenizer_adapter

Mode = roles.Mode

Prompts = Sequence[str] | Sequence[Sequence[Mapping[str, str]]]
"""Texts, or conversations for the chat template."""

_KEY_DOMAINS = {Mode.TRAIN: 0, Mode.EVAL: 1}
_UNNUMBERED_CALLS = 2
"""Third domain of sampling keys: calls without a key."""


class PromptSampler:
    """Samples from an engine as the settings say.

    Args:
        rollout: The engine.
        tokenizer: Makes tokens of prompts and texts of completions.
        config: How to sample in which mode, and the seed.
    """

    def __init__(
        self,
        rollout: base_rollout.BaseRollout,
        tokenizer: tokenizer_adapter.TokenizerAdapter,
        config: cluster_config.ClusterConfig,
    ):
        self._rollout, self._tokenizer, self._config = rollout, tokenizer, config
        self._base_key = jax.random.key(config.rollout(Mode.TRAIN).seed)
        self._calls = itertools.count()

    def key(self, mode: Mode, step: int, call: int) -> PRNGKeyArray:
        """Return the key of a call that a step makes; equal for no two of them."""
        key = jax.random.fold_in(self._base_key, _KEY_DOMAINS[mode])
        return jax.random.fold_in(jax.random.fold_in(key, step), call)

    def generate(
        self,
        prompts: Prompts,
        config: base_rollout.RolloutConfig,
        *,
        apply_chat_template: bool,
        num_samples: int,
        key: PRNGKeyArray | None,
    ) -> base_rollout.RolloutOutput:
        """Return ``num_samples`` completions of every prompt; see ``RLCluster.generate``."""
        if key is None:
            domain = jax.random.fold_in(self._base_key, _UNNUMBERED_CALLS)
            key = jax.random.fold_in(domain, next(self._calls))
        encoded = rollout_text.encode_prompts(
            self._tokenizer,
            prompts,
            apply_chat_template=apply_chat_template,
            max_prompt_length=config.max_prompt_length,
        )
        completions = self._rollout.generate(
            [one.token_ids.tolist() for one in encoded], config, key=key, num_samples=num_samples
        )
        completion_check.check(
            completions,
            engine=type(self._rollout).__name__,
            count=len(encoded) * num_samples,
            longest=config.max_tokens_to_generate,
        )
        return base_rollout.RolloutOutput(
            prompts=[one.text for one in encoded],
            prompt_tokens=[one.token_ids for one in encoded],
            completions=completions,
            text=[rollout_text.completion_text(self._tokenizer, one) for one in completions],
            has_logprobs=config.return_logprobs,
        )
