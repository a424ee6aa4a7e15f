"""Reward models in the format of transformers: a score in place of the output head.

That of ``AutoModelForSequenceClassification`` with one label.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from tunix.models import weights
from tunix.utils import config as config_lib

SCORE = "score.weight"
"""``[1, D]``: what the last hidden state is multiplied with."""

OUTPUT_HEAD = "lm_head.weight"

_LANGUAGE_MODEL, _CLASSIFIER = "ForCausalLM", "ForSequenceClassification"


@dataclasses.dataclass(frozen=True)
class Score:
    """A score, and the padding token by which transformers finds the token that is scored."""

    weight: Float[Array, " D"]
    pad_token_id: int | None
    """``None`` for that of the config."""


class ScoredTensors:
    """The tensors of a language model with a score in place of its output head."""

    def __init__(self, tensors: weights.Export, score: Float[Array, " D"]):
        self._tensors, self._score = tensors, np.asarray(score)[None]

    @property
    def tensors(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of every tensor, in the order in which they come."""
        found = {name: x for name, x in self._tensors.tensors.items() if name != OUTPUT_HEAD}
        return found | {SCORE: (self._score.shape, self._score.dtype)}

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield name and array."""
        yield from ((name, array) for name, array in self._tensors if name != OUTPUT_HEAD)
        yield SCORE, self._score


def make_config(
    config: Mapping[str, Any], pad_token_id: int | None, ends: Collection[int]
) -> dict[str, Any]:
    """Return the ``config.json`` of a reward model, made of that of its language model.

    Args:
        config: Of the language model.
        pad_token_id: Padding, if not that of ``config``.
        ends: Ids of tokens that end texts.

    Raises:
        ConfigError: If transformers has no classifier of its architecture, or would not score the
            last token of a text.
    """
    names = config["architectures"]
    problems = []
    if not all(name.endswith(_LANGUAGE_MODEL) for name in names):
        problems.append(
            f"architectures {names}: a score is for text models (...{_LANGUAGE_MODEL}) only"
        )
    pad = config.get("pad_token_id") if pad_token_id is None else pad_token_id
    why = "transformers scores the last token of a text that is not pad_token_id"
    if pad is None:
        problems.append(f"pad_token_id is missing: {why}; give one that ends no text")
    elif pad in ends:
        problems.append(
            f"pad_token_id {pad} ends texts (eos_token_id): {why}, and would skip the very token "
            "that is scored here; give another"
        )
    elif not 0 <= pad < config["vocab_size"]:
        problems.append(f"pad_token_id {pad} is outside of the {config['vocab_size']} embeddings")
    if problems:
        raise config_lib.ConfigError("reward model", problems)
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    renamed = [name.removesuffix(_LANGUAGE_MODEL) + _CLASSIFIER for name in names]
    return {**config, **labels, "architectures": renamed, "pad_token_id": pad}
