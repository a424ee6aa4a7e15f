"""``tunix generate``: sample from a model."""

import argparse
import json
import logging
import pathlib
import sys
import time
from collections.abc import Sequence

import jax

from tunix.cli import errors
from tunix.cli.loading import build, trained_model
from tunix.cli.running import run_text, run_weights
from tunix.generate import completion, engine, sampling_params
from tunix.models import automodel
from tunix.models.transformer import decoder
from tunix.tokenizers import model_tokenizer, tokenizer_adapter
from tunix.utils import compile_cache
from tunix.utils import config as config_lib


def main(argv: Sequence[str]) -> int:
    """Sample as ``argv`` says; ``argv[0]`` is the name of the program."""
    options = _parser(argv[0]).parse_args(argv[1:])
    texts = options.prompt or _lines_of_input()
    _require_text(texts)
    compile_cache.enable()
    model, tokenizer, files = load(options)
    tokenizer = model_tokenizer.ModelTokenizer(tokenizer, model.num_embed)
    as_chat = _is_chat(options, tokenizer)
    if options.system is not None and not as_chat:
        problem = "--system is part of a conversation, and the prompt is text; use --chat"
        raise config_lib.ConfigError("command line", [problem])
    prompts = [_encode(tokenizer, text, as_chat, options.system) for text in texts]
    params = sampling_params.SamplingParams(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        stop_token_ids=tokenizer.eos_ids(),
    )
    longest = max(map(len, prompts)) + options.max_new_tokens
    build.report_context(files, model, longest, "--max-new-tokens")
    sampler = engine.Engine(
        model, max_slots=min(len(prompts) * options.num_samples, 16), cache_size=longest
    )
    start = time.perf_counter()
    sampler.warmup()
    compiled = time.perf_counter()
    completions = sampler.generate(
        prompts,
        params,
        key=jax.random.key(options.seed),
        num_samples=options.num_samples,
        forbidden_tokens=model_tokenizer.unused_ids(tokenizer, model.num_embed),
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


def _require_text(texts: Sequence[str]) -> None:
    """Raise if a prompt says nothing; lines of standard input that do are none."""
    if not all(text.strip() for text in texts):
        problem = "--prompt is empty: there is nothing to answer or to continue; write a text"
        raise config_lib.ConfigError("command line", [problem])


def _lines_of_input() -> list[str]:
    """Return the prompts on standard input: one a line, without the blank ones.

    Raises:
        ConfigError: If there are none, or they are no UTF-8.
    """
    if sys.stdin.isatty():
        print("reading prompts, one a line; end with Ctrl-D", file=sys.stderr)
    try:
        # Other characters that end a line somewhere, such as a form feed, are part of a prompt.
        lines = sys.stdin.read().removeprefix("\ufeff").split("\n")
    except UnicodeDecodeError as error:
        problem = f"byte {error.start + 1} is not {error.encoding}; convert the prompts to it"
        raise config_lib.ConfigError("standard input", [problem]) from error
    prompts = [line.removesuffix("\r") for line in lines if line.strip()]
    if not prompts:
        problem = "it holds no prompt; write one a line, or use --prompt"
        raise config_lib.ConfigError("standard input", [problem])
    # What follows the last line's end is no line.
    if blank := len(lines) - len(prompts) - (not lines[-1]):
        print(f"blank lines of standard input are no prompts: {blank} left out", file=sys.stderr)
    return prompts


def load(
    options: argparse.Namespace,
) -> tuple[decoder.Decoder, tokenizer_adapter.TokenizerAdapter, str]:
    """Return a model as it was published, or as a run has trained it, its tokenizer and its files.

    Raises:
        ConfigError: If an option does not go with what ``model`` is, or the run does not keep
            the weights asked for.
    """
    path = pathlib.Path(options.model)
    if not trained_model.is_run(path):
        if options.weights is not None or options.step is not None:
            problem = f"--weights and --step choose from a run, and {options.model} is none"
            raise config_lib.ConfigError("command line", [problem])
        model, files = automodel.AutoModel.from_pretrained(
            options.model, dtype=options.dtype or "float32", precision=options.precision or "auto"
        )
        assert isinstance(model, decoder.Decoder)
        return model, tokenizer_adapter.load_tokenizer(files), files
    if options.dtype is not None or options.precision is not None:
        problem = f"--dtype and --precision are those of the run {path}; leave them out"
        raise config_lib.ConfigError("command line", [problem])
    # Orbax warns that what was opened to be read cannot be written.
    logging.getLogger("absl").setLevel(logging.ERROR)
    checkpoint = trained_model.find(path, options.step, None, options.weights or "last")
    model, base = trained_model.load(checkpoint)
    trained_model.require_finite(checkpoint, model)
    source = checkpoint.tokenizer_path or str(base)
    date = run_text.read(checkpoint.run).date
    return model, tokenizer_adapter.load_tokenizer(source, date=date), str(base)


def _is_chat(options: argparse.Namespace, tokenizer: tokenizer_adapter.TokenizerAdapter) -> bool:
    """Return whether prompts are messages: as asked, or as the model was trained."""
    if options.chat is not None or not tokenizer.has_chat_template:
        return bool(options.chat)
    path = pathlib.Path(options.model).expanduser().absolute()
    if not trained_model.is_run(path):
        return True
    found = run_text.read(trained_model.run_of(path))
    if not found.uses_chat_template:
        print(
            "the run trained on text without the chat template, so the prompt is text too "
            "(--chat makes it a message)",
            file=sys.stderr,
        )
    return found.uses_chat_template


def decode(tokenizer: tokenizer_adapter.TokenizerAdapter, found: completion.Completion) -> str:
    """Return the reply's text, without the token that ended it."""
    ids = found.token_ids[:-1] if found.finish_reason == "stop" else found.token_ids
    return tokenizer.decode([int(i) for i in ids])


def _encode(
    tokenizer: tokenizer_adapter.TokenizerAdapter, text: str, as_chat: bool, system: str | None
) -> list[int]:
    if not as_chat:
        return tokenizer.encode_prompt(text)
    first = [] if system is None else [{"role": "system", "content": system}]
    return tokenizer.encode_prompt([*first, {"role": "user", "content": text}])


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
    parser.add_argument(
        "model", help="directory, .gguf file, package:NAME, hub id, or the directory of a run"
    )
    parser.add_argument("--step", type=int, help="checkpoint of a run; the latest by default")
    parser.add_argument("--weights", choices=run_weights.CHOICES, help=run_weights.HELP)
    parser.add_argument(
        "--prompt",
        action="append",
        help="repeat for several; without it, every line of standard input is a prompt (one of "
        'several lines: --prompt "$(cat FILE)")',
    )
    parser.add_argument("--system", help="system message before every prompt")
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=128,
        help="tokens after which a reply is cut (default: %(default)s)",
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default, is greedy")
    parser.add_argument("--top-k", type=int, help="of all tokens by default")
    parser.add_argument("--top-p", type=float, help="of all tokens by default")
    parser.add_argument("--min-p", type=float, help="of all tokens by default")
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, help="1, the default, is none"
    )
    parser.add_argument(
        "--num-samples", type=int, default=1, help="completions of each prompt (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--chat",
        action="store_const",
        const=True,
        help="the prompt is a user's message (default where the model has a chat template, unless "
        "it is a run that trained without it)",
    )
    form.add_argument(
        "--raw",
        dest="chat",
        action="store_const",
        const=False,
        help="the prompt is text to continue as it stands",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of the weights (default: float32)"
    )
    parser.add_argument(
        "--precision", choices=("auto", "exact", "fast"), help="of products (default: auto)"
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON line each, with tokens and log-probabilities"
    )
    return parser


if __name__ == "__main__":
    sys.exit(errors.run(main, sys.argv))
