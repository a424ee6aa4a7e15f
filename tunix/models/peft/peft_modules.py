"""What files call the modules of a model that can have adapters, from its family's weight table."""

import dataclasses
import re
from collections.abc import Sequence

from tunix.models import families, lora, weight_table
from tunix.models.transformer import decoder, projection


@dataclasses.dataclass(frozen=True)
class AdapterTarget:
    """Where a module of the files lives in our model."""

    path: str
    index: tuple[int, ...]
    """The layer, where layers are stacked."""
    module: projection.Projection

    @property
    def place(self) -> tuple[str, tuple[int, ...]]:
        """What tells two of them apart."""
        return self.path, self.index

    def shape(self, part: str, rank: int) -> tuple[int, ...]:
        """Return the shape of a tensor of the file; matrices are ``[out, in]`` there."""
        in_features, out_features = self.module.weight_shape[-2:]
        return {
            "lora_a": (rank, in_features),
            "lora_b": (out_features, rank),
            "lora_magnitude": (out_features,),
        }[part]


def targets_to_write(model: decoder.Decoder) -> dict[str, AdapterTarget]:
    """Return every module by the one name that we write."""
    family = families.family_of_model(model)
    return _targets(model, family.weights_of_files(model.config))


def targets_to_read(model: decoder.Decoder) -> dict[str, AdapterTarget]:
    """Return every module by each of its names."""
    rows = families.family_of_model(model).weights
    aliases = [dataclasses.replace(row, hf=hf) for row in rows for hf in (row.hf, *row.also)]
    return _targets(model, aliases) | targets_to_write(model)


def _targets(
    model: decoder.Decoder, table: Sequence[weight_table.Weight]
) -> dict[str, AdapterTarget]:
    modules = {f"{path}.w": module for path, module in lora.iter_projections(model)}
    shapes = {name: module.weight_shape for name, module in modules.items()}
    return {
        module_name(slot.hf): AdapterTarget(name.removesuffix(".w"), slot.index, modules[name])
        for name, slots in weight_table.slots(table, shapes, model.config.num_layers).items()
        for slot in slots
    }


def module_name(tensor: str) -> str:
    """Return the name of a weight's module in transformers.

    A text model within a larger one is ``model.language_model`` there, whatever its files say.
    """
    name = tensor.removesuffix(".weight")
    return re.sub(r"^language_model\.model\.", "model.language_model.", name)
