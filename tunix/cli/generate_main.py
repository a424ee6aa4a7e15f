"""``tunix generate``: sample from a model."""

import argparse
import json
import sys
import time
from collections.abc import Sequence

import jax

from tunix.cli import errors
from tunix.generate import completion, engine, sampling_params, tokenizer_adapter
from tunix.models import automodel
from tunix.models.transformer import decoder
from tunix.utils import compile_cache


def main(argv: Sequence[str]) -> int:
    """Sample as ``argv`` says; ``argv[0]`` is the name of the program."""
    options = _parser(argv[0]).parse_args(argv[1:])
    compile_cache.enable()
    model, path = automodel.AutoModel.from_pretrained(
        options.model, dtype=options.dtype, precision=options.precision
    )
    assert isinstance(model, decoder.Decoder)
    tokenizer = tokenizer_adapter.load_tokenizer(path)
    texts = options.prompt or [sys.stdin.read()]
    as_chat = tokenizer.has_chat_template if options.chat is None else options.chat
    prompts = [_encode(tokenizer, text, as_chat) for text in texts]
    params = sampling_params.SamplingParams(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        stop_token_ids=tokenizer.eos_ids(),
    )
    sampler = engine.Engine(
        model,
        max_slots=min(len(prompts) * options.num_samples, 16),
        cache_size=max(map(len, prompts)) + options.max_new_tokens,
    )
    start = time.perf_counter()
    sampler.warmup([len(prompt) for prompt in prompts])
    compiled = time.perf_counter()
    completions = sampler.generate(
        prompts, params, key=jax.random.key(options.seed), num_samples=options.num_samples
    )
    seconds = time.perf_counter() - compiled
    for i, found in enumerate(completions):
        text = decode(tokenizer, found)
        prompt = texts[i // options.num_samples]
        print(_as_json(prompt, text, found) if options.json else text, flush=True)
    tokens = sum(len(found.token_ids) for found in completions)
    print(
        f"{tokens} tokens in {seconds:.2f} s, {tokens / seconds:.1f} tokens/s "
        f"(after {compiled - start:.1f} s to prepare)",
        file=sys.stderr,
    )
    return 0


def decode(tokenizer: tokenizer_adapter.TokenizerAdapter, found: completion.Completion) -> str:
    """Return the reply's text, without the token that ended it."""
    ids = found.token_ids[:-1] if found.finish_reason == "stop" else found.token_ids
    return tokenizer.decode([int(i) for i in ids])


def _encode(tokenizer: tokenizer_adapter.TokenizerAdapter, text: str, as_chat: bool) -> list[int]:
    if as_chat:
        return tokenizer.encode_prompt([{"role": "user", "content": text}])
    return tokenizer.encode_prompt(text)


def _as_json(prompt: str, text: str, found: completion.Completion) -> str:
    return json.dumps(
        {
            "prompt": prompt,
            "text": text,
            "finish_reason": found.finish_reason,
            "token_ids": found.token_ids.tolist(),
            "logps": found.logps.tolist(),
            "sampled_logps": found.sampled_logps.tolist(),
        },
        ensure_ascii=False,
    )


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description="Sample from a model.")
    parser.add_argument("model", help="directory, .gguf file, package:NAME or hub id")
    parser.add_argument("--prompt", action="append", help="repeat for several; else stdin is read")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default, is greedy")
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--min-p", type=float)
    parser.add_argument("--repetition-penalty", type=float, default=1.0)
    parser.add_argument("--num-samples", type=int, default=1, help="completions of each prompt")
    parser.add_argument("--seed", type=int, default=0)
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--chat",
        action="store_const",
        const=True,
        help="the prompt is a user's message (default where the model has a chat template)",
    )
    form.add_argument(
        "--raw",
        dest="chat",
        action="store_const",
        const=False,
        help="the prompt is text to continue as it stands",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--precision", choices=("auto", "exact", "fast"), default="auto")
    parser.add_argument(
        "--json", action="store_true", help="one JSON line each, with tokens and log-probabilities"
    )
    return parser


if __name__ == "__main__":
    sys.exit(errors.run(main, sys.argv))
