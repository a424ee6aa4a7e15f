"""Text sampling in the call form that users of google-tunix know."""

import dataclasses
import secrets
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int, PRNGKeyArray

from tunix.generate import (
    base_sampler,
    completion,
    engine,
    plain_engine,
    requests,
    sampling_params,
    weight_sync,
)
from tunix.models.transformer import decoder
from tunix.tokenizers import model_tokenizer, tokenizer_adapter
from tunix.utils import config as config_lib
from tunix.utils import reference_names

SamplerOutput = base_sampler.SamplerOutput


@dataclasses.dataclass(frozen=True)
class CacheConfig:
    """Shape of the key-value cache; what is ``None`` is the model's."""

    cache_size: int
    """How many tokens a prompt and its continuation may have together."""
    num_layers: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None


_KNOWN_SIZES = ("num_layers", "num_kv_heads", "head_dim")


class Sampler(base_sampler.BaseSampler):
    """Continues strings with a model.

    A :class:`~tunix.models.transformer.decoder.Decoder` goes through the continuous-batching
    engine, which holds its own copy of the weights: set :attr:`transformer_state` after they
    change. Any other module is sampled without a cache, slowly.

    Args:
        transformer: The model.
        tokenizer: Anything :class:`~tunix.tokenizers.tokenizer_adapter.TokenizerAdapter` wraps.
        cache_config: Size of the cache; the model knows its other sizes, which may be left out.
        max_slots: How many strings are decoded at a time.

    Raises:
        ConfigError: If ``cache_config`` is not one for this model.
    """

    def __init__(
        self,
        transformer: nnx.Module,
        tokenizer: Any,
        cache_config: CacheConfig,
        *,
        max_slots: int = 8,
    ):
        self._transformer = transformer
        self.tokenizer = tokenizer_adapter.TokenizerAdapter(tokenizer)
        self.cache_config = cache_config
        self._logits_of = jax.jit(_full_logits, static_argnums=0)
        if decoder.has_hidden(transformer):
            _check_cache(cache_config, transformer)
            known = {name: getattr(transformer.config, name) for name in _KNOWN_SIZES}
            self.cache_config = dataclasses.replace(cache_config, **known)
            self._engine = engine.Engine(
                transformer, max_slots=max_slots, cache_size=cache_config.cache_size
            )
            self._vocab_size = transformer.num_embed
        else:
            self._vocab_size = _vocab_size(transformer)
            self._engine = plain_engine.PlainEngine(
                transformer, vocab_size=self._vocab_size, cache_size=cache_config.cache_size
            )

        # Rows of the embedding that are no token: drawn, they would decode to nothing.
        self._unused = model_tokenizer.unused_ids(self.tokenizer, self._vocab_size)

    @property
    def transformer(self) -> nnx.Module:
        """The model that is sampled from."""
        return self._transformer

    @property
    def transformer_state(self) -> nnx.State:
        """The model's weights; assign to sample from others."""
        return nnx.state(self._transformer)

    @transformer_state.setter
    def transformer_state(self, state: nnx.State) -> None:
        expected = weight_sync.shapes_of(self.transformer_state)
        if problems := list(weight_sync.differences(expected, weight_sync.shapes_of(state))):
            raise weight_sync.WeightMismatchError(problems)
        nnx.update(self._transformer, state)
        self._engine.sync(self._transformer)

    @property
    def dtype(self) -> jnp.dtype:
        """Dtype of the model's first parameter."""
        return jax.tree.leaves(self.transformer_state)[0].dtype

    def tokenize(self, input_string: str) -> Int[np.ndarray, " T"]:
        """Return the token ids of a prompt, with BOS where the tokenizer wants one."""
        return np.asarray(self.tokenizer.encode_prompt(input_string), np.int32)

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
    ) -> base_sampler.SamplerOutput:
        """Continue each of ``input_strings``.

        Args:
            input_strings: One prompt or several.
            max_generation_steps: Tokens after which a continuation is cut.
            max_prompt_length: Width of the padded prompts; by default the longest one's.
            echo: Whether text and tokens begin with the prompt.
            return_logits: Whether to return the logits of every generated token. They take
                one more forward pass over prompt and continuation.
            eos_tokens: Any of these ends a continuation; the tokenizer's own by default.
            forbidden_tokens: Ids that are never drawn.
            temperature: Divides the logits; 0 is greedy.
            top_p: Keep the smallest set of likely tokens with this mass.
            top_k: Keep the k most likely tokens.
            seed: Decides the draws; ``None`` draws differently every time.
            pad_output: Whether tokens come as one array, padded on the right.

        Raises:
            PromptError: Listing every prompt that is empty or too long.
            ConfigError: If a setting is out of range.
        """
        strings = [input_strings] if isinstance(input_strings, str) else list(input_strings)
        prompts = [self.tokenize(string) for string in strings]
        _check_lengths(prompts, max_prompt_length)
        stops = self.tokenizer.eos_ids() if eos_tokens is None else eos_tokens
        params = sampling_params.SamplingParams(
            max_new_tokens=max_generation_steps,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            stop_token_ids=tuple(stops),
        )
        completions = self.generate_tokens(
            [prompt.tolist() for prompt in prompts],
            params,
            key=jax.random.key(secrets.randbits(31) if seed is None else seed),
            forbidden_tokens=tuple(forbidden_tokens or ()),
        )
        width = max_prompt_length or max(map(len, prompts), default=0)
        pad = self.tokenizer.pad_id()
        shown = [self._shown(p, c, echo=echo) for p, c in zip(prompts, completions, strict=True)]
        tokens = [ids for ids, _ in shown]
        if pad_output:
            total = max_generation_steps + (width if echo else 0)
            tokens = _padded(tokens, total, pad)
        return base_sampler.SamplerOutput(
            text=[text for _, text in shown],
            tokens=tokens,
            logprobs=[one.logps for one in completions],
            logits=self._logits(prompts, completions) if return_logits else None,
            padded_prompt_tokens=_padded(prompts, width, pad, left=True),
        )

    def generate_tokens(
        self,
        prompts: Sequence[Sequence[int]],
        params: sampling_params.SamplingParams | Sequence[sampling_params.SamplingParams],
        *,
        key: PRNGKeyArray,
        num_samples: int = 1,
        forbidden_tokens: Sequence[int] = (),
    ) -> list[completion.Completion]:
        """Return ``num_samples`` completions of each tokenized prompt; see ``Engine.generate``."""
        return self._engine.generate(
            prompts,
            params,
            key=key,
            num_samples=num_samples,
            forbidden_tokens=(*forbidden_tokens, *self._unused),
        )

    def _shown(
        self, prompt: np.ndarray, one: completion.Completion, *, echo: bool
    ) -> tuple[np.ndarray, str]:
        """Return tokens and text of a continuation, with the prompt in front if echoed."""
        stopped = one.finish_reason == "stop"
        spoken = one.token_ids[:-1] if stopped else one.token_ids
        before = prompt if echo else prompt[:0]
        text = self.tokenizer.decode(
            np.concatenate([before, spoken]).tolist(), skip_special_tokens=True
        )
        return np.concatenate([before, one.token_ids]), text

    def _logits(
        self, prompts: Sequence[np.ndarray], completions: Sequence[completion.Completion]
    ) -> list[Float[np.ndarray, "T V"]]:
        """Return the logits that predicted each generated token."""
        graphdef, state = nnx.split(self._transformer)
        found = []
        for prompt, one in zip(prompts, completions, strict=True):
            ids = np.concatenate([prompt, one.token_ids])
            size = next(
                b for b in plain_engine.buckets(self.cache_config.cache_size) if b >= len(ids)
            )
            logits = self._logits_of(graphdef, state, _padded([ids], size, 0))[0]
            found.append(np.asarray(logits[len(prompt) - 1 : len(ids) - 1], np.float32))
        return found


def _full_logits(
    graphdef: nnx.GraphDef[Any], state: nnx.State, tokens: Int[np.ndarray, "B T"]
) -> jax.Array:
    """Return the logits of right-padded rows; causality hides the padding."""
    rows, length = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    causal = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (rows, length, length))
    model: Any = nnx.merge(graphdef, state)
    return model(tokens, positions, None, causal)[0]


def _padded(
    rows: Sequence[np.ndarray], width: int, pad: int, *, left: bool = False
) -> Int[np.ndarray, "B T"]:
    padded = np.full((len(rows), width), pad, np.int32)
    for target, row in zip(padded, rows, strict=True):
        target[width - len(row) if left else 0 :][: len(row)] = row
    return padded


def _check_lengths(prompts: Sequence[np.ndarray], max_prompt_length: int | None) -> None:
    if max_prompt_length is None:
        return
    problems = [
        f"prompt {i} has {len(prompt)} tokens, more than max_prompt_length={max_prompt_length}; "
        "shorten it or raise the limit"
        for i, prompt in enumerate(prompts)
        if len(prompt) > max_prompt_length
    ]
    if problems:
        raise requests.PromptError(problems)


def _check_cache(cache_config: CacheConfig, model: decoder.Decoder) -> None:
    problems = [
        f"{name} is {getattr(cache_config, name)}, but the model's is {getattr(model.config, name)}"
        for name in _KNOWN_SIZES
        if getattr(cache_config, name) not in (None, getattr(model.config, name))
    ]
    if cache_config.cache_size < 1:
        problems.append(f"cache_size must be at least 1, got {cache_config.cache_size}")
    if problems:
        raise config_lib.ConfigError("CacheConfig", problems)


def _vocab_size(model: nnx.Module) -> int:
    """Return the width of a foreign module's logits, without running it."""
    graphdef, state = nnx.split(model)
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    return jax.eval_shape(lambda s, t: _full_logits(graphdef, s, t), state, tokens).shape[-1]


__getattr__ = reference_names.hints(__name__)
