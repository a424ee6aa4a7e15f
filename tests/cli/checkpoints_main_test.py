"""``tunix checkpoints`` sees what damaged a checkpoint, and deletes what nobody needs."""

import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tunix.cli import checkpoints_main, errors
from tunix.sft import checkpoint_manager
from tunix.sft.checkpoints import checkpoint_integrity


@pytest.fixture(name="run")
def _run(tmp_path):
    """Write checkpoints of steps 1, 2 and 10 below a run directory."""
    options = ocp.CheckpointManagerOptions(max_to_keep=None)
    manager = checkpoint_manager.CheckpointManager(tmp_path / "checkpoints", options)
    values = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)
    for step in (1, 2, 10):
        arrays = {"params": {"w": jnp.asarray(values) * step, "b": jnp.zeros(3)}}
        manager.save_state(step, arrays, {"iter_steps": step}, force=True)
    manager.close()
    return tmp_path


def tunix(*arguments):
    return errors.run(checkpoints_main.main, ["tunix checkpoints", *map(str, arguments)])


def largest_file(folder):
    files = [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def test_the_list_is_in_order_of_steps(run, capsys):
    assert tunix("ls", run) == 0
    out = capsys.readouterr().out
    rows = [line.split("│") for line in out.splitlines() if "MiB" in line]
    assert [row[1].strip() for row in rows] == ["1", "2", "10"]
    assert all(row[4].strip() == "yes" for row in rows)
    assert "params" in rows[0][5]


def test_sound_checkpoints_are_verified(run, capsys):
    assert tunix("verify", run / "checkpoints") == 0
    assert capsys.readouterr().out.count("sound: checksums match, arrays read") == 3


def test_a_flipped_bit_is_found_and_the_file_named(run, capsys):
    victim = largest_file(run / "checkpoints" / "2")
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    assert tunix("verify", run) == 1
    out = capsys.readouterr().out
    assert out.count("NOT SOUND") == 1
    assert f"{victim} has changed since it was written" in out


@pytest.mark.parametrize("has_checksums", [True, False])
def test_a_truncated_file_is_found_even_without_checksums(run, capsys, has_checksums):
    victim = largest_file(run / "checkpoints" / "10")
    if not has_checksums:
        (run / "checkpoints" / "10" / checkpoint_integrity.CHECKSUMS_NAME).unlink()
    victim.write_bytes(victim.read_bytes()[:100])
    assert tunix("verify", run) == 1
    out = capsys.readouterr().out
    assert "params cannot be read" in out
    assert (f"{victim} has 100 bytes" in out) == has_checksums


def test_missing_and_additional_files_are_found(run, capsys):
    folder = run / "checkpoints" / "1"
    (folder / "metadata" / "metadata").unlink()
    (folder / "notes.txt").write_text("mine")
    assert tunix("verify", run) == 1
    out = capsys.readouterr().out
    assert f"{folder}/metadata/metadata is missing" in out
    assert f"{folder}/notes.txt was not part of the checkpoint" in out


def test_arrays_that_are_not_finite_are_counted(tmp_path, capsys):
    manager = checkpoint_manager.CheckpointManager(tmp_path)
    bad = jnp.asarray([1.0, np.nan, np.inf, 2.0], jnp.bfloat16)
    manager.save_state(3, {"params": {"layers.w": bad}}, {}, force=True)
    manager.close()
    assert tunix("verify", tmp_path) == 1
    assert "layers.w has 2 of 4 values that are not finite" in capsys.readouterr().out


def test_pruning_keeps_the_latest_and_clears_what_a_killed_process_left(run, capsys):
    root = run / "checkpoints"
    leftover = root / "11.orbax-checkpoint-tmp-5"
    leftover.mkdir()
    (leftover / "part").write_bytes(b"x" * 10)
    assert tunix("prune", run, "--dry-run") == 0
    assert "would delete 1\n" in capsys.readouterr().out
    assert len(list(root.iterdir())) == 4
    assert tunix("prune", run, "--keep", 2) == 0
    assert "kept 2, 10" in capsys.readouterr().out
    assert sorted(path.name for path in root.iterdir()) == ["10", "2"]
    restored = checkpoint_manager.CheckpointManager(root)
    assert restored.latest_step() == 10
    restored.close()


def test_a_directory_without_checkpoints_is_named(tmp_path, capsys):
    assert tunix("ls", tmp_path / "nothing") == errors.USAGE_ERROR
    assert f"{tmp_path}/nothing: no checkpoint there" in capsys.readouterr().err


def test_nobody_can_ask_to_keep_none(run, capsys):
    with pytest.raises(SystemExit):
        tunix("prune", run, "--keep", 0)
    assert "must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["ls", "verify"])
def test_a_directory_may_be_given_relative_to_here_or_home(run, capsys, monkeypatch, command):
    monkeypatch.chdir(run.parent)
    monkeypatch.setenv("HOME", str(run.parent))
    assert tunix(command, run) == 0
    expected = capsys.readouterr().out
    for directory in (run.name, f"./{run.name}/checkpoints", f"~/{run.name}"):
        assert tunix(command, directory) == 0
        assert capsys.readouterr().out == expected


def test_a_step_that_is_empty_is_not_sound_and_is_cleared(run, capsys):
    """A run cannot continue from it, and Orbax takes it for the latest."""
    (run / "checkpoints" / "11").mkdir()
    assert tunix("verify", run) == 1
    out = capsys.readouterr().out
    assert "step 11  NOT SOUND" in out and "11 has no _CHECKPOINT_METADATA" in out
    assert tunix("ls", run) == 0
    assert "INCOMPLETE" in capsys.readouterr().out
    assert tunix("prune", run) == 0
    assert "deleting 11\n" in capsys.readouterr().out
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["10"]


def test_where_nothing_is_complete_nothing_is_deleted(tmp_path, capsys):
    (tmp_path / "2024").mkdir()
    assert tunix("prune", tmp_path) == errors.USAGE_ERROR
    assert "nothing was deleted" in capsys.readouterr().err
    assert (tmp_path / "2024").is_dir()


def test_a_critics_checkpoints_are_listed_verified_and_pruned_with_the_actors(run, capsys):
    beside = run / "checkpoints_critic"
    shutil.copytree(run / "checkpoints", beside)
    shutil.copytree(beside / "10", beside / "11")  # the run was killed before the actor's
    assert tunix("ls", run) == 0
    assert str(beside) in capsys.readouterr().out
    largest_file(beside / "2").unlink()
    assert tunix("verify", run) == 1
    assert capsys.readouterr().out.count("NOT SOUND") == 1
    assert tunix("prune", run, "--keep", 1) == 0
    assert "deleting checkpoints_critic/11\n" in capsys.readouterr().out
    assert [path.name for path in beside.iterdir()] == ["10"]


def test_paths_are_printed_as_they_are(run, capsys):
    place = run.rename(run.with_name("[bold]:smile:[x]"))
    (place / "checkpoints" / "2" / "more").write_text("x")
    assert tunix("verify", place) == 1
    assert f"{place}/checkpoints/2/more was not part of the checkpoint" in capsys.readouterr().out
