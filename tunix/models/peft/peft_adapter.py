"""Adapters in the format of the peft library: ``adapter_config.json`` and its tensors."""

import collections
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tunix.models import lora, safetensors_loader, safetensors_writer, weight_table
from tunix.models.peft import peft_config, peft_modules
from tunix.models.transformer import adapter as adapter_lib
from tunix.models.transformer import decoder
from tunix.utils import finite

WEIGHTS_NAME = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_PARTS: Mapping[str, str] = {
    "lora_A.weight": "lora_a",
    "lora_B.weight": "lora_b",
    "lora_magnitude_vector": "lora_magnitude",
}
"""Ends of tensor names, and ours. Matrices are stored ``[out, in]``."""


def save_adapter(
    model: decoder.Decoder,
    directory: str | pathlib.Path,
    *,
    base_model: str,
    allow_non_finite: bool = False,
) -> None:
    """Write the adapter in use as peft reads it.

    Args:
        model: A model of any family, its layers stacked or not.
        directory: Where to; created if needed. An adapter that it holds is not overwritten.
        base_model: Hub id or directory of the model the adapter belongs to, for those who load it.
        allow_non_finite: Whether weights may be NaN or infinite, as those of a failed training.

    Raises:
        AdapterError: If no adapter is in use.
        NonFiniteError: If weights are NaN or infinite.
        FileExistsError: If the directory holds an adapter.
    """
    folder = pathlib.Path(directory)
    if lora.active_adapter(model) is None:
        raise lora.AdapterError(
            f"no adapter is in use; the model has {list(lora.adapter_names(model))}"
        )
    taken = [name for name in (peft_config.CONFIG_NAME, WEIGHTS_NAME) if (folder / name).exists()]
    if taken:
        raise FileExistsError(f"{folder} already holds {taken}; choose another directory")
    targets = peft_modules.targets_to_write(model)
    adapted = {
        name: target for name, target in targets.items() if target.module.adapter is not None
    }
    config = _config_of(adapted, targets.keys(), base_model)
    specs, tensors = {}, []
    for name, target in adapted.items():
        for end, part in _PARTS.items():
            variable = target.module.adapter_arrays().get(part)
            if variable is None:
                continue
            array = np.asarray(variable[...][target.index]).T
            specs[f"{_PREFIX}{name}.{end}"] = (array.shape, array.dtype)
            tensors.append((f"{_PREFIX}{name}.{end}", array))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:  # both files appear complete
        part = pathlib.Path(work)
        size = max(1, sum(map(safetensors_writer.num_bytes, specs.values())))
        safetensors_writer.write(
            part, specs, tensors, max_shard_bytes=size, allow_non_finite=allow_non_finite
        )
        text = json.dumps(config.to_json(), indent=2) + "\n"
        (part / peft_config.CONFIG_NAME).write_text(text, encoding="utf-8")
        os.replace(part / safetensors_loader.SINGLE_NAME, folder / WEIGHTS_NAME)
        os.replace(part / peft_config.CONFIG_NAME, folder / peft_config.CONFIG_NAME)


def load_adapter(
    model: decoder.Decoder,
    directory: str | pathlib.Path,
    *,
    name: str = adapter_lib.DEFAULT,
    base_model: str | None = None,
) -> None:
    """Attach an adapter that peft, or :func:`save_adapter`, wrote, and use it; in place.

    Args:
        model: The base.
        directory: Holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        name: What to call the adapter.
        base_model: Hub id of ``model``, if known: an adapter that names another is refused.

    Raises:
        ConfigError: Listing every field of the config that is not supported.
        CheckpointFileError: If the tensors are missing, truncated or corrupt.
        AdapterError: If the model has an adapter of this name.
        WeightsError: If the adapter is for another base; lists every tensor that does not fit.
    """
    folder = pathlib.Path(directory)
    config = peft_config.read(folder / peft_config.CONFIG_NAME)
    file = safetensors_loader.SafetensorsFile(folder / WEIGHTS_NAME)
    lora.require_new_name(model, name)
    targets = peft_modules.targets_to_read(model)
    found, problems = _tensors_by_module(file, config)
    if base_model is not None and config.base_model not in (None, "", base_model):
        problems.append(f"it was made for {config.base_model!r}, and the model is {base_model!r}")
    problems += _module_problems(found, targets, config, file)
    groups = _by_parameter(found, targets)
    if not problems:
        problems += _stacking_problems(groups, targets, config)
    if not problems:
        problems += [
            f"tensor {name} holds NaN or infinite numbers; load another state of the adapter"
            for name in file.names
            if finite.count_non_finite(file.read(name))
        ]
    if problems:
        made_for = f" made for {config.base_model!r}" if config.base_model else ""
        headline = f"{folder}: the adapter{made_for} does not fit the model"
        raise weight_table.WeightsError(headline, weight_table.collapsed(problems))
    lora.park_adapters(model)
    if config.dropout:
        model.adapter_dropout = adapter_lib.AdapterDropout(jax.random.key(0))
    for modules in groups.values():
        _attach(modules, targets, found, file, config, name)


def _attach(
    modules: list[str],
    targets: Mapping[str, peft_modules.AdapterTarget],
    found: Mapping[str, Mapping[str, str]],
    file: safetensors_loader.SafetensorsFile,
    config: peft_config.PeftConfig,
    name: str,
) -> None:
    """Attach the adapter of one projection: one module of the files, or one for every layer."""
    target = targets[modules[0]]
    arrays = {}
    for part in found[modules[0]]:
        layers = [file.read(found[module][part]).T.astype(np.float32) for module in modules]
        arrays[part] = jnp.asarray(np.stack(layers) if target.index else layers[0])
    settings = lora.make_settings(
        target.path,
        name=name,
        alpha=config.alpha_of(modules[0]),
        use_rslora=config.use_rslora,
        dropout=config.dropout,
    )
    target.module.add_adapter(settings, **arrays)


def _tensors_by_module(
    file: safetensors_loader.SafetensorsFile, config: peft_config.PeftConfig
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Return the tensor names of each module by part, and what is wrong with them."""
    ends = "|".join(map(re.escape, _PARTS))
    parts = {part for part in _PARTS.values() if config.use_dora or part != "lora_magnitude"}
    found: dict[str, dict[str, str]] = {}
    problems = []
    for tensor in file.names:
        match = re.fullmatch(rf"{re.escape(_PREFIX)}(.+)\.({ends})(?:\.weight)?", tensor)
        part = _PARTS[match[2]] if match else None
        if match is None or part not in parts:
            problems.append(f"tensor {tensor} is no part of such an adapter")
        else:
            found.setdefault(match[1], {})[part] = tensor
    for module, tensors in found.items():
        problems += [f"{module} has no {part}" for part in sorted(parts - tensors.keys())]
    return found, problems


def _module_problems(
    found: Mapping[str, Mapping[str, str]],
    targets: Mapping[str, peft_modules.AdapterTarget],
    config: peft_config.PeftConfig,
    file: safetensors_loader.SafetensorsFile,
) -> Iterator[str]:
    """Yield which modules the model lacks, the file lacks, or have other shapes."""
    for module, tensors in found.items():
        if module not in targets:
            yield f"the model has no module {module}"
            continue
        for part, tensor in tensors.items():
            expected = targets[module].shape(part, config.rank_of(module))
            if file.shape(tensor) != expected:
                yield f"{tensor} has shape {file.shape(tensor)}, the model needs {expected}"
    present = {targets[module].place for module in found if module in targets}
    # A module may have several names; one sentence about it is enough.
    named = {
        target.place: module
        for module, target in targets.items()
        if target.place not in present and config.targets(module)
    }
    for module in named.values():
        yield f"target_modules names {module}, and there are no tensors for it"


def _by_parameter(
    found: Mapping[str, Mapping[str, str]], targets: Mapping[str, peft_modules.AdapterTarget]
) -> dict[str, list[str]]:
    """Return the modules of each projection, layers in order."""
    groups: dict[str, list[str]] = {}
    for module in sorted((m for m in found if m in targets), key=lambda m: targets[m].index):
        groups.setdefault(targets[module].path, []).append(module)
    return groups


def _stacking_problems(
    groups: Mapping[str, list[str]],
    targets: Mapping[str, peft_modules.AdapterTarget],
    config: peft_config.PeftConfig,
) -> Iterator[str]:
    """Yield the projections whose layers cannot be stacked, as their adapters differ."""
    for path, modules in groups.items():
        target = targets[modules[0]]
        if not target.index:
            continue
        kinds = {(config.rank_of(module), config.alpha_of(module)) for module in modules}
        if len(modules) < target.module.weight_shape[0] or len(kinds) > 1:
            yield (
                f"the layers of {path} have adapters of different sizes, or some have none, and "
                "they are stacked; in Python, load the model with scan_layers=False"
            )


def _config_of(
    adapted: Mapping[str, peft_modules.AdapterTarget], modules: Iterable[str], base_model: str
) -> peft_config.PeftConfig:
    """Return the settings of adapters by module name; ``modules`` are all there are."""
    ranks, alphas = {}, {}
    for name, target in adapted.items():
        assert target.module.adapter is not None and target.module.lora_a is not None
        ranks[name] = target.module.lora_a.shape[-1]
        alphas[name] = target.module.adapter.alpha
    rank, alpha = _most_common(ranks), _most_common(alphas)
    one = next(iter(adapted.values())).module
    assert one.adapter is not None
    return peft_config.PeftConfig(
        rank=rank,
        alpha=alpha,
        dropout=one.adapter.dropout,
        use_rslora=one.adapter.use_rslora,
        use_dora=one.lora_magnitude is not None,
        target_modules=tuple(_short_names(adapted, modules)),
        rank_pattern=_patterns({n: r for n, r in ranks.items() if r != rank}, adapted),
        alpha_pattern=_patterns({n: a for n, a in alphas.items() if a != alpha}, adapted),
        base_model=base_model,
    )


def _most_common(values: Mapping[str, float]) -> Any:
    return collections.Counter(values.values()).most_common(1)[0][0]


def _short_names(chosen: Iterable[str], modules: Iterable[str]) -> list[str]:
    """Return last parts of names where they mean no other module, whole names elsewhere."""
    chosen = list(chosen)
    others = {_last(name) for name in set(modules) - set(chosen)}
    return sorted({name if _last(name) in others else _last(name) for name in chosen})


def _patterns(values: Mapping[str, float], adapted: Iterable[str]) -> dict[str, Any]:
    """Return regular expressions that give each of these modules, and no other, its value."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        namesakes = [other for other in adapted if _last(other) == _last(name)]
        is_shared = all(values.get(other) == value for other in namesakes)
        found[re.escape(_last(name) if is_shared else name)] = value
    return found


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]
