"""Sampling from any module that maps tokens to logits: no cache, one full forward a token.

The slow path, for modules that are not the library's decoder. It has the engine's
interface and draws, and so gives the same completions for the same function.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tunix.generate import completion, requests, sampling_params
from tunix.ops import sampling

SMALLEST_BUCKET = 16


def buckets(cache_size: int) -> tuple[int, ...]:
    """Return the lengths of rows that have a program: 16, 32, 48, 64, 96, ..., the cache's size.

    Between two powers of two there is their mean, so that padding is at most a third of a
    prompt (longer than 32) and a fifth on average.
    """
    sizes, size = [], SMALLEST_BUCKET
    while size < cache_size:
        sizes.append(size)
        if size > SMALLEST_BUCKET and size * 3 // 2 < cache_size:
            sizes.append(size * 3 // 2)
        size *= 2
    return (*sizes, cache_size)


class PlainEngine:
    """Samples from ``model(tokens, positions, cache, attention_mask) -> (logits, cache)``."""

    def __init__(self, model: nnx.Module, *, vocab_size: int, cache_size: int):
        """Keep the weights of ``model``.

        Args:
            model: Called with ``cache=None`` and a causal mask.
            vocab_size: Size of the last axis of its logits.
            cache_size: How many tokens a prompt and its continuation may have together.
        """
        self._graphdef, self._state = nnx.split(model)
        self._vocab_size, self._cache_size = vocab_size, cache_size
        self._step = jax.jit(self._step_fn)

    def sync(self, source: nnx.Module | nnx.State) -> None:
        """Replace the weights; takes effect at the next ``generate``."""
        self._state = nnx.state(source) if isinstance(source, nnx.Module) else source

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: sampling_params.SamplingParams | Sequence[sampling_params.SamplingParams],
        *,
        key: PRNGKeyArray,
        num_samples: int = 1,
        forbidden_tokens: Sequence[int] = (),
    ) -> list[completion.Completion]:
        """Return ``num_samples`` completions of each prompt; see ``Engine.generate``."""
        checked = requests.check(
            prompts, params, cache_size=self._cache_size, vocab_size=self._vocab_size
        )
        banned = requests.banned_mask(forbidden_tokens, self._vocab_size)
        rows = [prompt for prompt in checked for _ in range(num_samples)]
        tokens = [list(map(int, row.token_ids)) for row in rows]
        draws: list[list[tuple[float, float]]] = [[] for _ in rows]
        running = set(range(len(rows)))
        arrays = _sampling_arrays([row.params for row in rows])
        while running:
            counts = [len(drawn) for drawn in draws]
            drawn, logps, sampled_logps = self._advance(tokens, arrays, key, counts, banned)
            for i in sorted(running):
                token = int(drawn[i])
                tokens[i].append(token)
                draws[i].append((float(logps[i]), float(sampled_logps[i])))
                own = rows[i].params
                if token in own.stop_token_ids or len(draws[i]) == own.max_new_tokens:
                    running.discard(i)
        return [
            _completion(row, ids, drawn)
            for row, ids, drawn in zip(rows, tokens, draws, strict=True)
        ]

    def _advance(
        self,
        tokens: list[list[int]],
        arrays: sampling.SamplingArrays,
        key: PRNGKeyArray,
        counts: list[int],
        banned: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the next token of every row and its two log-probabilities."""
        longest = max(map(len, tokens))
        size = next(b for b in buckets(self._cache_size) if b >= longest)
        padded = np.zeros((len(tokens), size), np.int32)
        for row, ids in zip(padded, tokens, strict=True):
            row[: len(ids)] = ids
        lengths = np.asarray([len(ids) for ids in tokens], np.int32)
        draw = self._step(
            self._state, padded, lengths, np.asarray(counts, np.int32), arrays, key, banned
        )
        return jax.device_get((draw.tokens, draw.logps, draw.sampled_logps))

    def _step_fn(
        self,
        state: nnx.State,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, " B"],
        counts: Int[Array, " B"],
        arrays: sampling.SamplingArrays,
        key: PRNGKeyArray,
        banned: Array,
    ) -> sampling.Draw:
        rows, length = tokens.shape
        positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
        causal = jnp.broadcast_to(
            jnp.tril(jnp.ones((length, length), bool)), (rows, length, length)
        )
        model = nnx.merge(self._graphdef, state)
        logits, _ = model(tokens, positions, None, causal)
        last: Float[Array, "B V"] = logits[jnp.arange(rows), lengths - 1].astype(jnp.float32)
        keys = jax.vmap(lambda row, count: jax.random.fold_in(jax.random.fold_in(key, row), count))(
            jnp.arange(rows), counts
        )
        seen = jnp.zeros((rows, self._vocab_size), bool)
        is_filled = jnp.arange(length) < lengths[:, None]
        ids = jnp.where(is_filled, tokens, self._vocab_size)  # out of range: dropped
        seen = seen.at[jnp.arange(rows)[:, None], ids].set(True, mode="drop")
        return sampling.sample(last, arrays, keys, seen, banned=banned)


def _sampling_arrays(
    params: Sequence[sampling_params.SamplingParams],
) -> sampling.SamplingArrays:
    def column(values: list[float], dtype: type) -> Array:
        return jnp.asarray(values, dtype)

    return sampling.SamplingArrays(
        temperature=column([p.temperature for p in params], np.float32),
        top_k=column([p.top_k or 0 for p in params], np.int32),
        top_p=column([1.0 if p.top_p is None else p.top_p for p in params], np.float32),
        min_p=column([p.min_p or 0.0 for p in params], np.float32),
        repetition_penalty=column([p.repetition_penalty for p in params], np.float32),
    )


def _completion(
    prompt: requests.Prompt, ids: list[int], draws: list[tuple[float, float]]
) -> completion.Completion:
    token_ids = np.asarray(ids[len(prompt.token_ids) :], np.int32)
    logps, sampled = np.asarray(draws, np.float32).T
    stopped = int(token_ids[-1]) in prompt.params.stop_token_ids
    return completion.Completion(
        token_ids=token_ids,
        logps=logps,
        sampled_logps=sampled,
        finish_reason="stop" if stopped else "length",
    )
