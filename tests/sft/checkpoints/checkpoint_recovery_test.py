"""Damaged checkpoints: one message that says what is damaged and what is sound, and a way on."""

import logging
import pathlib
import shutil

import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from tests.sft import toys
from tunix.sft import checkpoint_manager, peft_trainer
from tunix.sft.checkpoints import best_checkpoint, checkpoint_storage
from tunix.sft.checkpoints import checkpoint_integrity as integrity
from tunix.utils import config as config_lib

EVERY_STEP = ocp.CheckpointManagerOptions(save_interval_steps=1, max_to_keep=None)


def make(directory, options=EVERY_STEP, **settings):
    config = peft_trainer.TrainingConfig(
        eval_every_n_steps=1,
        pbar_description=None,
        checkpoint_root_directory=str(directory / "checkpoints"),
        checkpointing_options=options,
        **settings,
    )
    model = toys.Linear(rngs=nnx.Rngs(0))
    return peft_trainer.PeftTrainer(model, optax.adam(0.1), config).with_loss_fn(toys.squared_error)


def batches(n):
    return [toys.regression(8, seed=seed) for seed in range(n)]


@pytest.fixture(scope="module", name="trained")
def _trained(tmp_path_factory):
    """A run with checkpoints of steps 1, 2 and 3, and what its weights were after each."""
    directory = tmp_path_factory.mktemp("run")
    trainer, weights = make(directory), {}
    for step in (1, 2, 3):
        trainer.train(batches(step)[-1:])
        weights[step] = toys.leaves(trainer.state.params)
    trainer.close()
    return directory, weights


@pytest.fixture(name="run")
def _run(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


DAMAGES = {
    "it is an empty directory": (empty, "_CHECKPOINT_METADATA"),
    "its commit record is cut": (lambda step: cut(step / "_CHECKPOINT_METADATA"), "_CHECK"),
    "its parameters are missing": (lambda step: shutil.rmtree(step / "params"), "params"),
    "its list of arrays is cut": (lambda step: cut(step / "params/_METADATA"), "params"),
    "its store is cut": (lambda step: cut(step / "params/manifest.ocdbt"), "params"),
    "its position is cut": (lambda step: cut(step / "metadata/metadata"), "metadata/metadata"),
    "its position is missing": (lambda step: (step / "metadata/metadata").unlink(), "metadata"),
}
"""What happened to a step, and what the message names. All are noticed without checksums, too."""

SEALED_DAMAGES = DAMAGES | {
    "a bit has flipped": (lambda step: flip(largest_file(step / "optimizer")), "CRC-32"),
    "its checksums are cut": (lambda step: cut(step / integrity.CHECKSUMS_NAME), "checksums.json"),
    "its checksums are a number": (
        lambda step: (step / integrity.CHECKSUMS_NAME).write_text("5"),
        "checksums.json",
    ),
}
CASES = [
    *(pytest.param(*DAMAGES[name], False, id=f"{name}, unsealed") for name in DAMAGES),
    *(pytest.param(*SEALED_DAMAGES[name], True, id=f"{name}, sealed") for name in SEALED_DAMAGES),
]


def damage(run, step, do, *, sealed=True):
    place = run / "checkpoints" / str(step)
    if not sealed:
        (place / integrity.CHECKSUMS_NAME).unlink()
    do(place)
    return place


@pytest.mark.parametrize(("do", "named", "sealed"), CASES)
def test_a_damaged_latest_step_is_named_with_the_fault_and_the_sound_ones(run, do, named, sealed):
    place = damage(run, 3, do, sealed=sealed)
    with pytest.raises(checkpoint_storage.CheckpointDamagedError) as caught:
        make(run)
    message = str(caught.value)
    assert message.startswith(f"the checkpoint {place} is damaged:\n  - {place}")
    assert named in message.splitlines()[1]
    assert "sound: steps 1, 2; resume=newest-sound continues from step 2" in message
    assert place.exists()


@pytest.mark.parametrize(("do", "named", "sealed"), CASES)
def test_told_so_the_run_continues_from_the_newest_sound_step(
    run, trained, caplog, do, named, sealed
):
    damage(run, 3, do, sealed=sealed)
    with caplog.at_level(logging.WARNING):
        trainer = make(run, resume="newest-sound")
    assert trainer.train_steps == 2
    toys.assert_bit_identical(toys.leaves(trainer.state.params), trained[1][2])
    assert any("step 3 is damaged and set aside" in text for text in caplog.messages)
    assert (run / "checkpoints.damaged" / "3").is_dir()
    trainer.train(batches(3))
    trainer.close()
    toys.assert_bit_identical(toys.leaves(trainer.state.params), trained[1][3])
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["1", "2", "3"]
    assert not list(integrity.problems(run / "checkpoints" / "3"))


def test_steps_that_are_damaged_twice_are_both_kept(run):
    for _ in range(2):
        damage(run, 3, empty)
        make(run, resume="newest-sound").close()
        (run / "checkpoints" / "3").mkdir()
    assert {path.name for path in (run / "checkpoints.damaged").iterdir()} == {"3", "3-2"}


def test_where_no_step_is_sound_nothing_is_moved_and_no_new_run_begins(run):
    for step in (1, 2, 3):
        damage(run, step, empty)
    for resume in ("latest", "newest-sound"):
        with pytest.raises(checkpoint_storage.CheckpointDamagedError, match="no other step there"):
            make(run, resume=resume)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints"]


def test_a_sound_run_continues_from_its_latest_step_either_way(run):
    for resume in ("latest", "newest-sound"):
        trainer = make(run, resume=resume)
        assert trainer.train_steps == 3
        trainer.close()
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints"]


def test_only_what_is_read_has_to_be_sound(run, trained):
    """Who wants the weights alone has no use for the optimizer's state."""
    damage(run, 3, lambda step: flip(largest_file(step / "optimizer")))
    manager = checkpoint_manager.CheckpointManager(run / "checkpoints", EVERY_STEP)
    like = {"params": make(run / "other").state.params}
    arrays, _ = manager.restore_state(3, like)
    toys.assert_bit_identical(toys.leaves(arrays["params"]), trained[1][3])


@pytest.mark.parametrize("resume", ["latest", "newest-sound"])
@pytest.mark.parametrize("step", [1, 3])
def test_an_evaluation_that_cannot_be_read_does_not_hide_the_other_steps(tmp_path, step, resume):
    """Orbax reads the metrics of all steps at once, to know the best."""
    options = best_checkpoint.keep_best(EVERY_STEP, num=5)
    trainer = make(tmp_path, options)
    trainer.train(batches(3), batches(1))
    trainer.close()
    cut(tmp_path / "checkpoints" / str(step) / "metrics" / "metrics")
    if resume == "newest-sound":
        trainer = make(tmp_path, options, resume=resume)
        assert trainer.train_steps == (2 if step == 3 else 3)
        trainer.close()
        return
    with pytest.raises(checkpoint_storage.CheckpointDamagedError, match=f"checkpoints/{step} is"):
        make(tmp_path, options)


def test_another_choice_is_refused_with_those_there_are():
    with pytest.raises(config_lib.ConfigError, match=r"resume 'newest_sound' is not one of"):
        peft_trainer.TrainingConfig(eval_every_n_steps=1, resume="newest_sound")


@pytest.mark.parametrize("name", ["run[1]", "run*?", "[!a]", "$HOME", "a%20b#c", "[bold]", "ünï ✓"])
def test_a_directory_may_have_any_name(tmp_path, name):
    """Orbax reads some of these as patterns: it wrote what it could not read again."""
    trainer = make(tmp_path / name)
    trainer.train(batches(2))
    trainer.close()
    again = make(tmp_path / name)
    assert again.train_steps == 2
    toys.assert_bit_identical(toys.leaves(again.state.params), toys.leaves(trainer.state.params))
    assert not list(integrity.problems(tmp_path / name / "checkpoints" / "2"))


def test_the_users_home_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    trainer = make(pathlib.Path("~/run"))
    trainer.train(batches(1))
    trainer.close()
    assert (tmp_path / "run" / "checkpoints" / "1").is_dir()
    assert not (tmp_path / "~").exists()
    assert np.isfinite(toys.leaves(make(pathlib.Path("~/run")).state.params)[0]).all()
