"""Reference log-probabilities of a whole data set, computed once and kept.

With them no reference model is needed in memory while the policy trains. A file of them names the
data and the model that it was made from, by their contents, and is refused for any other.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx

from tunix.data.preference import preference_batches, preference_config, preference_tokens
from tunix.sft.dpo import reference as reference_lib

ExampleT = TypeVar("ExampleT", preference_tokens.TokenizedPair, preference_tokens.TokenizedRating)


class ReferenceCacheError(ValueError):
    """A file of reference log-probabilities that belongs to other data or another model."""


def with_reference_logps(
    examples: Sequence[ExampleT],
    model: nnx.Module,
    *,
    adapters: bool = True,
    batch_size: int = 8,
    cache_file: str | pathlib.Path | None = None,
) -> list[ExampleT]:
    """Return the examples with their log-probabilities under a reference.

    Args:
        examples: Tokenized pairs, or ratings.
        model: The reference. For a policy with adapters, the policy itself before training.
        adapters: False leaves its LoRA adapters out.
        batch_size: Prompts computed together.
        cache_file: Where the numbers are kept (``.npz``). If the file exists and fits, they are
            read from it instead of being computed.

    Raises:
        ReferenceCacheError: If the file exists and was made from other data or another model.
    """
    path = None if cache_file is None else pathlib.Path(cache_file)
    key = None if path is None else {"data": _hash_data(examples), "model": _hash_model(model)}
    if path is not None and key is not None and path.exists():
        logps = _read(path, key)
    else:
        logps = _compute(examples, model, adapters, batch_size)
        if path is not None and key is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Written aside and moved, so that a run that is killed leaves no half file.
            partial = path.with_name(path.name + ".tmp.npz")
            arrays: dict[str, Any] = {"logps": logps, **key}
            np.savez(partial, **arrays)
            partial.replace(path)
    return [
        dataclasses.replace(example, ref_logps=preference_tokens.RefLogps(*map(float, pair)))
        for example, pair in zip(examples, logps, strict=True)
    ]


def _compute(
    examples: Sequence[Any], model: nnx.Module, adapters: bool, batch_size: int
) -> np.ndarray:
    """Return ``[N, 2]`` log-probabilities in the order of the examples."""
    reference = reference_lib.Reference(model, adapters=adapters)
    is_pairs = isinstance(examples[0], preference_tokens.TokenizedPair)
    make: Any = preference_batches.pair_batches if is_pairs else preference_batches.rating_batches
    settings = preference_config.PreferenceDataConfig(
        batch_size=batch_size, shuffle_seed=None, last_batch="keep"
    )
    found = []
    for batch in make([_without_reference(example) for example in examples], settings):
        logps = reference(batch.rows)
        if not is_pairs:
            logps = np.concatenate([logps, reference(batch.foreign)], axis=1)
        found.append(np.asarray(logps))
    return np.concatenate(found)[: len(examples)]


def _without_reference(example: ExampleT) -> ExampleT:
    return dataclasses.replace(example, ref_logps=None)


def _read(path: pathlib.Path, key: dict[str, str]) -> np.ndarray:
    with np.load(path) as file:
        changed = [name for name, value in key.items() if str(file[name]) != value]
        if changed:
            raise ReferenceCacheError(
                f"{path} holds reference log-probabilities for other {' and '.join(changed)} than "
                "these; delete it, or name another file"
            )
        return file["logps"]


def _hash_data(examples: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        parts = [example.prompt, *(x for a in example.answers for x in (a.tokens, a.mask))]
        for part in parts:
            digest.update(len(part).to_bytes(4, "little"))
            digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def _hash_model(model: nnx.Module) -> str:
    """Return a digest of path, shape and value of every array, quantised ones included."""
    digest = hashlib.sha256()
    leaves, _ = jax.tree.flatten_with_path(nnx.state(model, nnx.Not(nnx.RngState)))
    for path, leaf in leaves:
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
