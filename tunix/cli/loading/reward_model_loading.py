"""The reward model of a run, and the reward function that asks it."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from tunix.cli.schemas import schema
from tunix.models import automodel, sources
from tunix.sft.dpo import reward_model, reward_model_files
from tunix.tokenizers import tokenizer_adapter
from tunix.utils import config as config_lib

KEY = "reward_model_config"

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
_PROBE = "Which is larger, 9.11 or 9.9?\n\n\tdef f(x): return {'ä': x}  # 日本語 🙂"
"""Words, digits, white space, code and other scripts: two vocabularies differ somewhere here."""


def load(
    options: schema.HeldModel,
    tokenizer: tokenizer_adapter.TokenizerAdapter,
    mesh: Mesh | None,
) -> reward_model.RewardModel:
    """Return the reward model that the settings name.

    Raises:
        ConfigError: If its tokenizer is not the policy's, whose tokens it gets.
        SourceError: If there is no such model.
        RewardModelFileError: If it is no reward model.
    """
    source = automodel.ModelSource(options.model_source)
    path = sources.resolve(options.model_id, source=source)
    _require_same_tokens(path, tokenizer)
    return reward_model_files.load_reward_model(
        path, mesh=mesh, dtype=options.dtype, precision=options.precision
    )


def as_reward_function(
    get_rewards: Callable[..., list[float]],
) -> Callable[..., Sequence[float]]:
    """Return ``get_rewards`` of a cluster under the name that logs show."""

    def reward_model(
        prompt_ids: Sequence[Int[np.ndarray, " P"]], completion_ids: Sequence[Any]
    ) -> Sequence[float]:
        return get_rewards(prompt_ids, completion_ids)

    return reward_model


def _require_same_tokens(path: pathlib.Path, policy: tokenizer_adapter.TokenizerAdapter) -> None:
    if not any((path / name).exists() for name in _TOKENIZER_FILES):
        return  # Whoever exported it without one vouches for it.
    own = tokenizer_adapter.load_tokenizer(path)
    if list(own.encode(_PROBE)) != list(policy.encode(_PROBE)):
        problem = (
            f"the tokenizer in {path} is not the policy's: it splits texts into other tokens, and "
            "the reward model would score what nobody wrote; take a reward model of the same family"
        )
        raise config_lib.ConfigError(KEY, [problem])
