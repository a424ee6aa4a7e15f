"""Where compiled programs are kept."""

import logging
import os
import subprocess
import sys

import jax
import pytest

from tunix.utils import compile_cache


@pytest.fixture
def unconfigured(monkeypatch):
    """JAX without a cache directory, put back afterwards."""
    names = [
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    ]
    before = {name: jax.config.values[name] for name in names}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv(compile_cache.DIRECTORY_VARIABLE, raising=False)
    jax.config.update(names[0], None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_by_default_it_is_below_the_users_cache(tmp_path, monkeypatch, unconfigured):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = compile_cache.enable()
    assert path is not None
    assert path.is_relative_to(tmp_path / "tunix")
    assert path.is_dir()
    assert jax.config.values["jax_compilation_cache_dir"] == str(path)


def test_the_environment_names_another_directory_or_none(tmp_path, monkeypatch, unconfigured):
    monkeypatch.setenv(compile_cache.DIRECTORY_VARIABLE, "off")
    assert compile_cache.enable() is None
    monkeypatch.setenv(compile_cache.DIRECTORY_VARIABLE, str(tmp_path / "x"))
    assert compile_cache.enable() == tmp_path / "x"


def test_what_was_configured_before_is_left_alone(tmp_path, unconfigured):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    assert compile_cache.enable(tmp_path / "other") == tmp_path
    assert not (tmp_path / "other").exists()


def test_a_directory_that_cannot_be_made_costs_a_warning_only(tmp_path, unconfigured, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        assert compile_cache.enable(tmp_path / "file" / "cache") is None
    assert "no compilation cache: cannot create" in caplog.text
    assert compile_cache.DIRECTORY_VARIABLE in caplog.text


def test_a_second_process_finds_the_programs_of_the_first(tmp_path):
    script = (
        "import jax, jax.numpy as jnp\n"
        "from tunix.utils import compile_cache\n"
        "compile_cache.enable()\n"
        "hits = []\n"
        "jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))\n"
        "jax.jit(lambda x: jnp.sin(x) * 3.0)(jnp.ones(3))\n"
        "print(hits.count('/jax/compilation_cache/cache_misses'))\n"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    env |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    misses = [
        int(subprocess.check_output([sys.executable, "-c", script], env=env, text=True))
        for _ in range(2)
    ]
    assert misses[0] > 0
    assert misses[1] == 0
