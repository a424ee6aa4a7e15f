"""The persistent compilation cache: a program compiled once is loaded in later processes."""

import hashlib
import logging
import os
import pathlib
import platform

import jax
from jaxlib import version as jaxlib_version

_LOG = logging.getLogger(__name__)

DIRECTORY_VARIABLE = "TUNIX_COMPILATION_CACHE_DIR"
"""Environment variable that names the cache directory; ``off`` switches the cache off."""

_JAX_VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def default_directory() -> pathlib.Path:
    """Return the directory used when nothing else is said.

    It is below the user's cache directory and differs per jaxlib version and kind of
    processor: compiled CPU code may use instructions that another machine lacks.
    """
    root = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    return root / "tunix" / "xla" / f"{jaxlib_version.__version__}-{_processor_id()}"


def enable(directory: str | os.PathLike[str] | None = None) -> pathlib.Path | None:
    """Switch the persistent cache on and return its directory, or ``None`` if it is off.

    What was configured before wins: a directory that the program or ``JAX_COMPILATION_CACHE_DIR``
    set is left alone. Otherwise ``directory``, ``TUNIX_COMPILATION_CACHE_DIR`` and
    :func:`default_directory` are tried in this order. A directory that cannot be written
    costs compile time, not the run: it is reported and the cache stays off.
    """
    configured = jax.config.values["jax_compilation_cache_dir"] or os.environ.get(_JAX_VARIABLE)
    if configured:
        return pathlib.Path(configured)
    chosen = directory or os.environ.get(DIRECTORY_VARIABLE) or default_directory()
    if str(chosen) == "off":
        return None
    path = pathlib.Path(chosen)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _LOG.warning(
            "no compilation cache: cannot create %s (%s); set %s to a writable directory or to off",
            path,
            error.strerror,
            DIRECTORY_VARIABLE,
        )
        return None
    jax.config.update("jax_compilation_cache_dir", str(path))
    # Many small programs add up to most of a start on CPU, so keep those too.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return path


def _processor_id() -> str:
    """Return a short name of this kind of processor, from its model and feature flags."""
    features = platform.machine() + platform.processor()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        first_core = cpuinfo.read_text().split("\n\n", 1)[0]
        keys = ("model name", "flags", "Features")
        features += "".join(line for line in first_core.splitlines() if line.startswith(keys))
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
