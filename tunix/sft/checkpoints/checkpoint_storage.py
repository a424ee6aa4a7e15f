"""Named arrays of a checkpoint: what is stored of them, and whether they fit what is expected."""

import functools
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from tunix.utils import problems as problems_lib
from tunix.utils import tree as tree_lib

if TYPE_CHECKING:
    import orbax.checkpoint as ocp


class CheckpointMismatchError(problems_lib.SubjectError):
    """A checkpoint that does not fit the model, with every array that differs."""

    headline = "checkpoint {} does not fit the model and optimizer"


class CheckpointWriteError(OSError):
    """A checkpoint that could not be written; names the directory and the remedy."""


class CheckpointDamagedError(problems_lib.SubjectError):
    """A checkpoint that is no longer what was written; says which others are sound."""

    headline = "the checkpoint {} is damaged"
    most_shown = 5

    def __init__(self, where: str, problems: Iterable[str], sound: Sequence[int], remedy: str = ""):
        super().__init__(where, problems)
        self.sound, self.remedy = sound, remedy
        self.args = (where, self.problems, sound, remedy)

    def __str__(self) -> str:
        """Return one line per problem, as many as can be taken in, and what can be done."""
        others = "no other step there is sound"
        if self.sound:
            others = f"sound: {'step' if len(self.sound) == 1 else 'steps'} "
            others += ", ".join(map(str, self.sound))
        return f"{super().__str__()}\n{others}{self.remedy}"


def absolute(root: str | os.PathLike[str]) -> pathlib.Path:
    """Return a directory as an absolute path, ``~`` written out."""
    return pathlib.Path(os.path.abspath(os.path.expanduser(root)))


def literal_path(path: pathlib.Path) -> Any:
    """Return a path that Orbax takes as it is, whatever is in its name.

    Orbax looks for what it has written with patterns that begin with the path, so ``run[1]`` would
    stand for ``run1``: parts of arrays were never joined, and nothing could be read again.
    """
    return _literal_path_class()(path)


@functools.cache
def _literal_path_class() -> Any:
    from etils import epath  # slow to load, like all of Orbax

    class LiteralPath(type(epath.Path("/"))):
        """A path whose pattern matching is that of ``pathlib``: it reads the pattern alone."""

        def glob(self, pattern: str) -> Iterator[Any]:
            for found in pathlib.Path(self).glob(pattern):
                yield self / found.relative_to(pathlib.Path(self))

    return LiteralPath


def step_directories(
    root: pathlib.Path, options: "ocp.CheckpointManagerOptions"
) -> dict[int, pathlib.Path]:
    """Return the directories of all steps, also of damaged ones, in order of their steps."""
    if not root.is_dir():
        return {}
    names = _name_format(options)
    found = {}
    for path in root.iterdir():
        digits = path.name.rpartition("_")[2]
        if path.is_dir() and digits.isdecimal() and names.build_name(int(digits)) == path.name:
            found[int(digits)] = path
    return dict(sorted(found.items()))


def step_directory(
    root: pathlib.Path, options: "ocp.CheckpointManagerOptions", step: int
) -> pathlib.Path:
    """Return where a step is, or would be."""
    return root / _name_format(options).build_name(step)


def storable(tree: Any) -> dict[str, Any]:
    """Return the leaves of ``tree`` by name, random keys as the integers they are made of."""
    named = tree_lib.named_leaves(tree)
    return {name: jax.random.key_data(x) if _is_key(x) else x for name, x in named.items()}


def abstract(tree: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Return shape, dtype and sharding of what :func:`storable` makes of ``tree``.

    The leaves may be arrays or ``ShapeDtypeStruct`` themselves.
    """

    def describe(x: Any) -> jax.ShapeDtypeStruct:
        if _is_key(x):
            data = jax.eval_shape(jax.random.key_data, x)
            # A key's data has one more dimension than the key: only "on every device" carries over.
            sharding = x.sharding if x.sharding is not None and x.ndim == 0 else None
            return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)
        if isinstance(x, np.ndarray | np.generic):
            return jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)

    return {name: describe(x) for name, x in tree_lib.named_leaves(tree).items()}


def rebuilt(like: Any, named: Mapping[str, Any]) -> Any:
    """Return a tree shaped like ``like`` with the stored arrays ``named``.

    Random keys in ``like`` must be keys, not ``ShapeDtypeStruct``: they say which generator.
    """

    def rebuild(path: tuple[Any, ...], x: Any) -> Any:
        value = named[tree_lib.path_name(path)]
        if not _is_key(x):
            return value
        return jax.random.wrap_key_data(value, impl=jax.random.key_impl(x))

    return jax.tree.map_with_path(rebuild, like)


def differences(
    item: str, expected: Mapping[str, jax.ShapeDtypeStruct], found: Mapping[str, Any]
) -> list[str]:
    """Return one sentence per array that is missing, unexpected, or of another shape or dtype.

    Args:
        item: Name of the part of the checkpoint, for the message.
        expected: What the model needs.
        found: What the checkpoint holds; values have ``shape`` and ``dtype``.
    """
    problems = []
    for name, want in expected.items():
        if name not in found:
            problems.append(f"{item}: the checkpoint has no array for {name} {_describe(want)}")
        elif tuple(found[name].shape) != want.shape or found[name].dtype != want.dtype:
            problems.append(
                f"{item}: {name} is {_describe(found[name])} in the checkpoint, but "
                f"{_describe(want)} is expected"
            )
    for name in found:
        if name not in expected:
            problems.append(
                f"{item}: nothing expects the checkpoint's array {name} {_describe(found[name])}"
            )
    return problems


def require_writable(directory: pathlib.Path, num_bytes: int) -> None:
    """Check that a checkpoint of this size can be written, before any work is lost.

    Raises:
        CheckpointWriteError: If the directory cannot be created or written, or has no room.
    """
    probe = directory / ".write_probe"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"probe")
        probe.unlink()
    except OSError as error:
        raise CheckpointWriteError(
            f"cannot write checkpoints to {directory}: {error.strerror}; make it writable or "
            "choose another checkpoint_root_directory"
        ) from error
    free = shutil.disk_usage(directory).free
    if free < num_bytes:
        raise CheckpointWriteError(
            f"cannot write checkpoints to {directory}: one needs {num_bytes / 2**20:.1f} MiB and "
            f"{free / 2**20:.1f} MiB are free; free some space or choose another "
            "checkpoint_root_directory"
        )


def _name_format(options: "ocp.CheckpointManagerOptions") -> Any:
    import orbax.checkpoint as ocp

    return options.step_name_format or ocp.path.step.standard_name_format(
        step_prefix=options.step_prefix,
        step_format_fixed_length=options.step_format_fixed_length,
    )


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _describe(x: Any) -> str:
    return f"{np.dtype(x.dtype).name}{list(x.shape)}"
