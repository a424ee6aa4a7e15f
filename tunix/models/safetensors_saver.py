"""Saving with merged adapters, under the name and with the arguments of google-tunix."""

import pathlib

from flax import nnx

from tunix.models import lora
from tunix.models.hf import hf_export
from tunix.utils import problems as problems_lib


def save_lora_merged_model_as_safetensors(
    local_model_path: str | pathlib.Path,
    output_dir: str | pathlib.Path,
    lora_model: nnx.Module,
    rank: int,
    alpha: float,
) -> None:
    """Save ``lora_model`` with its adapters added to its weights, as a Hugging Face directory.

    :func:`tunix.models.hf.hf_export.save_merged` does the same without ``rank`` and ``alpha``,
    which the model knows itself. The model does not change.

    Args:
        local_model_path: Files that the base was loaded from; tokenizer and special ids are theirs.
        output_dir: Where to; it must not exist, or be empty.
        lora_model: The model, scanned or not.
        rank: Rank of all its adapters.
        alpha: Alpha of all its adapters.

    Raises:
        ExportError: If an adapter has another rank or alpha, there is none, or the directory is
            not empty.
    """
    if problems := _disagreements(lora_model, rank, alpha):
        raise hf_export.ExportError(
            problems_lib.listed(
                f"rank {rank} and alpha {alpha:g} are not those of the model's adapters", problems
            )
            + "\nhf_export.save_merged takes both from the model"
        )
    hf_export.save_merged(lora_model, output_dir, source=local_model_path)


def _disagreements(model: nnx.Module, rank: int, alpha: float) -> list[str]:
    """Return one sentence for each adapter of another rank or alpha."""
    problems = []
    for path, module in lora.iter_projections(model):
        if module.adapter is None:
            continue
        found = module.adapter_arrays()["lora_a"].shape[-1], module.adapter.alpha
        if found != (rank, alpha):
            problems.append(f"{path} has rank {found[0]} and alpha {found[1]:g}")
    return problems
