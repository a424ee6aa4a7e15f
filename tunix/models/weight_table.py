"""The rows of a weight table, the slots they make in one model, and the audit of a checkpoint.

Pure bookkeeping over names and shapes: no array is touched here.
"""

import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from tunix.utils import problems as problems_lib

_MOST_SHOWN = 50


@dataclasses.dataclass(frozen=True)
class Weight:
    """``hf`` and ``ours`` name the same tensor; ``layout`` turns the first into the second.

    ``{i}`` stands for a layer, and ``{e}`` in ``hf`` alone for an expert: files hold experts one by
    one, a parameter all of a layer on its first axis. ``layout`` is a permutation of axes in the
    notation of einops (``"o i -> i o"``), or ``None`` where both sides store the tensor alike.
    """

    hf: str
    ours: str | None
    """``None``: files may hold this tensor, but the model computes it or is without that part.
    In such a row ``{rest}`` stands for any rest of a name: ``vision_tower.{rest}``."""

    layout: str | None = None

    copy_of: str | None = None
    """Where a model has no parameter ``ours``, files may still hold the tensor if it equals
    this parameter: tied models are often saved with both copies."""

    also: tuple[str, ...] = ()
    """Other names that files have for the tensor; ``hf`` is the one we write."""


class TensorSource(Protocol):
    """The named arrays of one checkpoint."""

    @property
    def where(self) -> str:
        """What to call the checkpoint in messages."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor, known before any is read."""
        ...

    def read(self, name: str) -> np.ndarray:
        """Return one tensor."""
        ...


class WeightsError(problems_lib.SubjectError):
    """A checkpoint and a model that do not fit each other, with every reason why."""

    most_shown = _MOST_SHOWN


def misfit(source: TensorSource, problems: Iterable[str]) -> WeightsError:
    """Return the error of a checkpoint that does not fit the model."""
    return WeightsError(f"{source.where} does not fit the model", problems)


@dataclasses.dataclass(frozen=True)
class Slot:
    """The place of one checkpoint tensor: a parameter or, of a stacked one, a layer or expert."""

    hf: str
    index: tuple[int, ...]
    """Where on the leading axes of the parameter; empty for the whole of it."""
    shape: tuple[int, ...]
    """Shape in the checkpoint."""
    to_ours: tuple[int, ...]
    """Permutation of axes that turns the checkpoint's layout into ours."""
    to_hf: tuple[int, ...]
    """The inverse."""


def named_as_in(table: Sequence[Weight], names: Collection[str]) -> list[Weight]:
    """Return the table with every row under the first of its names that occurs in ``names``."""

    def chosen(row: Weight) -> Weight:
        candidates = (row.hf, *row.also)
        found = (hf for hf in candidates if hf.replace("{i}", "0").replace("{e}", "0") in names)
        return dataclasses.replace(row, hf=next(found, row.hf))

    return [chosen(row) for row in table]


def slots(
    table: Sequence[Weight], shapes: Mapping[str, tuple[int, ...]], num_layers: int
) -> dict[str, list[Slot]]:
    """Return the slots of every parameter in ``shapes`` that the table names, layers in order."""
    found: dict[str, list[Slot]] = {}
    for row in table:
        for path, hf, index in _tensors_of_row(row, shapes, num_layers):
            shape = shapes[path][len(index) :]
            to_ours, to_hf = _permutations(row.layout, len(shape))
            slot = Slot(hf, index, tuple(shape[axis] for axis in to_hf), to_ours, to_hf)
            found.setdefault(path, []).append(slot)
    return found


def audit(
    table: Sequence[Weight],
    slots: Mapping[str, Sequence[Slot]],
    parameters: Iterable[str],
    source: TensorSource,
) -> list[Weight]:
    """Return the redundant copies in ``source``.

    Raises:
        WeightsError: Unless every other tensor has a parameter of its shape, and every
            parameter its tensors; all that do not are listed.
    """
    found = {name: tuple(shape) for name, shape in source.shapes.items()}
    expected = {slot.hf: slot.shape for group in slots.values() for slot in group}
    extra = found.keys() - expected.keys()
    copies = [row for row in table if row.copy_of is not None and row.hf in extra]
    extra -= {row.hf for row in copies}
    computed = [_regex(row.hf) for row in table if row.ours is None]
    # A part that the model does have is no part that it is without.
    computed = [row for row in computed if not any(re.fullmatch(row, name) for name in expected)]
    problems = {
        "no checkpoint tensor": [
            f"{name} {shape}" for name, shape in expected.items() if name not in found
        ],
        "no parameter for checkpoint tensor": [
            f"{name} {found[name]}"
            for name in found
            if name in extra and not any(re.fullmatch(pattern, name) for pattern in computed)
        ],
        "checkpoint tensor": [
            f"{name} has shape {found[name]}, the model needs {shape}"
            for name, shape in expected.items()
            if found.get(name, shape) != shape
        ],
        "no row of the weight table for parameter": [
            name for name in parameters if name not in slots
        ],
    }
    lines = [f"{kind} {text}" for kind, texts in problems.items() for text in collapsed(texts)]
    if lines:
        raise misfit(source, lines)
    return copies


def collapsed(texts: Iterable[str]) -> list[str]:
    """Return ``texts`` with those that differ in the layer only joined into one."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for text in texts:
        match = re.search(r"(?<=layers\.)\d+(?=\.)", text)
        pattern = text if match is None else f"{text[: match.start()]}{{i}}{text[match.end() :]}"
        groups.setdefault(pattern, []).append((text, match.group() if match else ""))
    lines = []
    for pattern, members in groups.items():
        layers = ", ".join(layer for _, layer in members[:_MOST_SHOWN])
        if len(members) > _MOST_SHOWN:
            layers += f" and {len(members) - _MOST_SHOWN} more"
        lines.append(members[0][0] if len(members) == 1 else f"{pattern} for i in {layers}")
    return lines


def _regex(hf: str) -> str:
    return re.escape(hf).replace(r"\{i\}", r"\d+").replace(r"\{rest\}", ".+")


def _tensors_of_row(
    row: Weight, shapes: Mapping[str, tuple[int, ...]], num_layers: int
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield parameter, checkpoint name and index in the parameter for each tensor of a row."""
    for path, hf, index in _layer_tensors(row, shapes, num_layers):
        if "{e}" not in hf:
            yield path, hf, index
            continue
        for expert in range(shapes[path][len(index)]):
            yield path, hf.replace("{e}", str(expert)), (*index, expert)


def _layer_tensors(
    row: Weight, shapes: Mapping[str, tuple[int, ...]], num_layers: int
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    if row.ours is None:
        return
    if "{i}" not in row.ours:
        if row.ours in shapes:
            yield row.ours, row.hf, ()
        return
    stacked = row.ours.replace(".{i}.", ".")
    # A stack says itself how many layers it has: those of an image tower are not the decoder's.
    for i in range(shapes[stacked][0] if stacked in shapes else num_layers):
        hf = row.hf.replace("{i}", str(i))
        if stacked in shapes:
            yield stacked, hf, (i,)
        elif (path := row.ours.replace("{i}", str(i))) in shapes:
            yield path, hf, ()


def _permutations(layout: str | None, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the permutation of axes that ``layout`` describes, and its inverse."""
    if layout is None:
        return tuple(range(rank)), tuple(range(rank))
    left, right = (side.split() for side in layout.split("->"))
    if sorted(left) != sorted(right) or len(set(left)) != len(left) or len(left) != rank:
        raise ValueError(f"layout {layout!r} is not a permutation of {rank} axes")
    return tuple(left.index(axis) for axis in right), tuple(right.index(axis) for axis in left)
