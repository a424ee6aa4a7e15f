"""``tunix export``: write what a run has trained in the format of transformers."""

import argparse
import functools
import logging
import pathlib
import sys
from collections.abc import Callable, Sequence

import jax
from flax import nnx

from tunix.cli import console, errors
from tunix.cli.loading import trained_model
from tunix.cli.running import run_text, run_weights
from tunix.models import lora, sources
from tunix.models.hf import hf_export, model_card
from tunix.models.peft import peft_adapter
from tunix.models.transformer import decoder
from tunix.sft.dpo import reward_model
from tunix.tokenizers import pad_token, tokenizer_adapter, tokenizer_files

_OUT = console.OUT


def main(argv: Sequence[str]) -> int:
    """Export as ``argv`` says; ``argv[0]`` is the name of the program."""
    options = _parser(argv[0]).parse_args(argv[1:])
    # Nothing here is worth an accelerator, and a model may be larger than one.
    jax.config.update("jax_platforms", "cpu")
    # Orbax warns that what was opened to be read cannot be written.
    logging.getLogger("absl").setLevel(logging.ERROR)
    checkpoint = trained_model.find(
        pathlib.Path(options.run), options.step, options.model, options.weights
    )
    require_format(options.format, checkpoint)
    read = trained_model.load_reward_model if checkpoint.is_reward_model else trained_model.load
    model, base = read(checkpoint)
    target = write(model, base, checkpoint, options)
    _print_summary(target, checkpoint, options.format)
    return 0


def require_format(chosen: str, checkpoint: trained_model.Checkpoint) -> None:
    """Check that the run trained what the format holds, before anything is loaded.

    Raises:
        ExportError: If it did not; names the format that fits.
    """
    has_adapters = checkpoint.options.lora_config is not None
    if has_adapters and chosen == "hf":
        raise hf_export.ExportError(
            f"{checkpoint.run} trained LoRA adapters; write them into the base model with "
            "--format merged, or alone with --format peft"
        )
    if not has_adapters and chosen != "hf":
        raise hf_export.ExportError(
            f"{checkpoint.run} trained the whole model and no adapters; use --format hf"
        )
    if checkpoint.is_reward_model and chosen == "peft":
        raise hf_export.ExportError(
            f"{checkpoint.run} trained a reward model, whose score has no place beside adapters "
            "alone; use --format merged"
        )


def write(
    model: decoder.Decoder | reward_model.RewardModel,
    base: pathlib.Path,
    checkpoint: trained_model.Checkpoint,
    options: argparse.Namespace,
) -> pathlib.Path:
    """Write the files and return their directory."""
    if options.format == "peft":
        assert isinstance(model, decoder.Decoder)
        return _write_adapter(model, base, checkpoint, options)
    tokenizer = _tokenizer_source(checkpoint.tokenizer_path, base)
    padding: str | None = None

    def write_tokenizer(source: pathlib.Path, folder: pathlib.Path) -> None:
        del source  # that of the model, where the run may have another tokenizer
        tokenizer_files.write(tokenizer, folder)
        if not run_text.read(checkpoint.run).uses_chat_template:
            tokenizer_files.remove_chat_templates(folder)
        if padding is not None:
            pad_token.declare(folder, padding)

    save: Callable[..., pathlib.Path]
    if isinstance(model, reward_model.RewardModel):
        padding, pad_id = pad_token.choose(
            tokenizer_adapter.load_tokenizer(tokenizer), model.decoder.num_embed
        )
        save = functools.partial(
            hf_export.save_with_score, model.decoder, model.score[...], pad_token_id=pad_id
        )
    elif lora.is_lora_enabled(model):
        save = functools.partial(hf_export.save_merged, model)
    else:
        save = functools.partial(hf_export.save_pretrained, model)
    return save(
        options.output,
        source=base,
        dtype=options.dtype,
        max_shard_size=options.max_shard_size,
        card=model_card.ModelCard(
            base_model=options.base_id or checkpoint.options.model_id,
            training=_training(checkpoint),
            auto_class=_auto_class(checkpoint),
        ),
        write_tokenizer=write_tokenizer,
        allow_non_finite=options.allow_non_finite,
    )


def _auto_class(checkpoint: trained_model.Checkpoint) -> str:
    """Return what of transformers loads the exported model."""
    is_reward = checkpoint.is_reward_model
    return "AutoModelForSequenceClassification" if is_reward else "AutoModelForCausalLM"


def _write_adapter(
    model: decoder.Decoder,
    base: pathlib.Path,
    checkpoint: trained_model.Checkpoint,
    options: argparse.Namespace,
) -> pathlib.Path:
    target = pathlib.Path(options.output).expanduser().absolute()
    arrays = nnx.state(model, nnx.LoRAParam)
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
    name = options.base_id or _findable(checkpoint.options.model_id, base)
    card = model_card.ModelCard(base_model=name, training=_training(checkpoint))
    with hf_export.new_directory(target, num_bytes) as folder:
        peft_adapter.save_adapter(
            model, folder, base_model=name, allow_non_finite=options.allow_non_finite
        )
        text = card.render_adapter(target.name)
        (folder / hf_export.CARD_NAME).write_text(text, encoding="utf-8")
    return target


def _findable(model_id: str, base: pathlib.Path) -> str:
    """Return a name by which peft finds the base, wherever it is called from."""
    is_package = model_id.startswith(sources.PACKAGE_PREFIX)
    if not is_package and not pathlib.Path(model_id).expanduser().exists():
        return model_id
    _OUT.print(
        f"note: the adapter names its base by a place on this machine, {base.absolute()}; for "
        "others, say with --base-id what they call it",
    )
    return str(base.absolute())


def _tokenizer_source(chosen: str | None, base: pathlib.Path) -> pathlib.Path:
    """Return where the run's tokenizer is: with the base model unless the run says otherwise."""
    if chosen is None:
        return base
    path = pathlib.Path(chosen).expanduser()
    return path if path.exists() else sources.resolve(chosen)


def _training(checkpoint: trained_model.Checkpoint) -> str:
    """Return one sentence on what was trained."""
    config = checkpoint.options.lora_config
    what = "all parameters"
    if config is not None:
        what = f"LoRA adapters of rank {config.rank} and alpha {config.alpha:g}"
    if not run_text.read(checkpoint.run).uses_chat_template:
        what += ", on text without a chat template"
    of = "the average after step" if checkpoint.weights == "ema" else "step"
    return f"{what}; {of} {checkpoint.step} of the run {checkpoint.run.name}"


def _print_summary(target: pathlib.Path, checkpoint: trained_model.Checkpoint, form: str) -> None:
    average = "the average after " if checkpoint.weights == "ema" else ""
    place = f"{average}step {checkpoint.step} of {checkpoint.run}"
    _OUT.print(f"checkpoint {place}")
    for path in sorted(path for path in target.rglob("*") if path.is_file()):
        name = str(path.relative_to(target))
        _OUT.print(f"  {name:36}{_size(path.stat().st_size):>12}")
    auto_class = _auto_class(checkpoint)
    lines = [
        f"  from transformers import {auto_class}, AutoTokenizer",
        f'  model = {auto_class}.from_pretrained("{target}")',
        f'  tokenizer = AutoTokenizer.from_pretrained("{target}")',
    ]
    if form == "peft":
        lines = [
            "  from peft import PeftModel  # base is the model that was trained",
            f'  model = PeftModel.from_pretrained(base, "{target}")',
        ]
    if not run_text.read(checkpoint.run).uses_chat_template and form != "peft":
        _OUT.print(
            "without the base model's chat template, which the run's rows did not use; copy it to "
            "have it back"
        )
    _OUT.print(f"written to {target}; load it with", *lines, sep="\n")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:,.1f} kB"


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Write what a run has trained in the format of transformers.",
    )
    parser.add_argument("run", help="directory that a run of tunix wrote, or one checkpoint in it")
    parser.add_argument("output", help="directory to write; must not exist or be empty")
    parser.add_argument(
        "--format",
        choices=("hf", "merged", "peft"),
        required=True,
        help="hf: the whole model, of a run that trained it all; merged: the base model with the "
        "run's LoRA adapters added to its weights; peft: the adapters alone, for the peft library",
    )
    parser.add_argument("--step", type=int, help="which checkpoint; the latest by default")
    parser.add_argument(
        "--weights", choices=run_weights.CHOICES, default="last", help=run_weights.HELP
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of the files; by default as the run stored its parameters",
    )
    parser.add_argument(
        "--max-shard-size", default="5GB", metavar="SIZE", help="largest file (default: 5GB)"
    )
    parser.add_argument(
        "--model",
        metavar="PATH",
        help="where the base model is now: directory, .gguf file, package:NAME or hub id",
    )
    parser.add_argument(
        "--base-id",
        metavar="ID",
        help="what others call the base model, e.g. its hub id: written into the adapter's config, "
        "by which peft finds the base, and into the model card (default: model_id of the run)",
    )
    parser.add_argument(
        "--allow-non-finite",
        action="store_true",
        help="write weights that are NaN or infinite, too, which are refused otherwise",
    )
    return parser


if __name__ == "__main__":
    sys.exit(errors.run(main, sys.argv))
