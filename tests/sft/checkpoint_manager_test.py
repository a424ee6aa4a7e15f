"""Checkpoints: what goes in comes out, and what does not fit is listed in full."""

import errno
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from tests.sft import toys
from tunix.sft import checkpoint_manager, peft_trainer
from tunix.sft.checkpoints import checkpoint_integrity, checkpoint_storage

EVERY_STEP = ocp.CheckpointManagerOptions(save_interval_steps=1, max_to_keep=2)


def manager(directory, options=EVERY_STEP):
    return checkpoint_manager.CheckpointManager(str(directory), options)


def zeros_like(tree):
    return jax.tree.map(lambda x: x if "key" in str(x.dtype) else jnp.zeros_like(x), tree)


ARRAYS = {
    "params": {"layers.0.w": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(2, jnp.bfloat16)},
    "state": {
        "count": jnp.int32(7),
        "key": jax.random.key(5),
        "keys": jax.random.split(jax.random.key(1), 3),
    },
    "nothing": {},
}


def test_arrays_and_metadata_come_back_bit_for_bit(tmp_path):
    with_document = {"data": {"epoch": 1, "name": "ü"}, "list": [1, 2.5, None]}
    saving = manager(tmp_path)
    assert saving.save_state(3, ARRAYS, with_document)
    saving.close()
    arrays, metadata = manager(tmp_path).restore_state(3, zeros_like(ARRAYS))
    assert metadata == with_document
    toys.assert_bit_identical(arrays, ARRAYS)
    assert arrays["state"]["key"].dtype == ARRAYS["state"]["key"].dtype


def test_optimizer_states_come_back_in_their_own_structure(tmp_path):
    params = {"w": jnp.ones(3), "b": jnp.zeros(())}
    state = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1)).init(params)
    state = jax.tree.map(lambda x: x + 1, state)
    saving = manager(tmp_path)
    saving.save_state(1, {"optimizer": state}, {})
    saving.wait_until_finished()
    restored, _ = saving.restore_state(1, {"optimizer": zeros_like(state)})
    assert jax.tree.structure(restored["optimizer"]) == jax.tree.structure(state)
    toys.assert_bit_identical(restored["optimizer"], state)


def test_a_save_keeps_the_values_of_its_moment(tmp_path):
    """The next step reuses the buffers while the save is still being written."""
    step = jax.jit(lambda x: x + 1.0, donate_argnums=0)
    x = jnp.zeros((512, 2048))
    saving = manager(tmp_path, ocp.CheckpointManagerOptions(max_to_keep=None))
    for number in range(1, 5):
        x = step(x)
        saving.save_state(number, {"x": {"x": x}}, {}, force=True)
        for _ in range(3):
            x = step(x)
    saving.wait_until_finished()
    for number in range(1, 5):
        arrays, _ = saving.restore_state(number, {"x": {"x": jnp.zeros((512, 2048))}})
        assert np.unique(arrays["x"]["x"]).tolist() == [1.0 + 4 * (number - 1)]


def test_only_the_last_checkpoints_are_kept(tmp_path):
    saving = manager(tmp_path)
    for step in (1, 2, 3):
        assert saving.save_state(step, ARRAYS, {})
    saving.wait_until_finished()
    assert saving.latest_step() == 3
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["2", "3"]


def test_options_decide_when_to_save_and_force_overrides(tmp_path):
    saving = manager(tmp_path, ocp.CheckpointManagerOptions(save_interval_steps=10))
    assert saving.save_state(10, ARRAYS, {})
    assert not saving.should_save(11)
    assert not saving.save_state(11, ARRAYS, {})
    assert saving.save_state(12, ARRAYS, {}, force=True)
    saving.close()


def test_by_default_it_saves_at_once_and_then_not_for_minutes(tmp_path):
    saving = manager(tmp_path, None)
    assert saving.save_state(1, ARRAYS, {})
    saving.wait_until_finished()
    assert not saving.should_save(2)
    saving.close()


def test_without_a_directory_nothing_happens():
    saving = checkpoint_manager.CheckpointManager()
    model = toys.Linear(rngs=nnx.Rngs(0))
    assert saving.latest_step() is None
    assert not saving.is_enabled
    assert saving.save(1, model, force=True) is False
    assert saving.maybe_restore(model) == (0, {})
    saving.close()
    with pytest.raises(FileNotFoundError, match="no root_directory"):
        saving.restore_state(1, {})


def test_every_array_that_does_not_fit_is_listed(tmp_path):
    saving = manager(tmp_path)
    params = {
        "same": jnp.ones(2),
        "old": jnp.ones(3),
        "wide": jnp.ones((2, 3)),
        "half": jnp.ones(2, jnp.bfloat16),
    }
    saving.save_state(1, {"params": params}, {})
    saving.wait_until_finished()
    like = {"params": {"same": jnp.ones(2), "new": jnp.ones(4), "wide": jnp.ones((2, 4)),
                       "half": jnp.ones(2)}, "optimizer": {"mu": jnp.ones(2)}}  # fmt: skip
    with pytest.raises(checkpoint_storage.CheckpointMismatchError) as error:
        saving.restore_state(1, like)
    assert str(error.value) == (
        f"checkpoint {tmp_path}/1 does not fit the model and optimizer:"
        "\n  - params: half is bfloat16[2] in the checkpoint, but float32[2] is expected"
        "\n  - params: the checkpoint has no array for new float32[4]"
        "\n  - params: wide is float32[2, 3] in the checkpoint, but float32[2, 4] is expected"
        "\n  - params: nothing expects the checkpoint's array old float32[3]"
        "\n  - optimizer: the checkpoint has no array for mu float32[2]"
    )


def test_a_step_that_was_not_saved_is_named_with_those_that_were(tmp_path):
    saving = manager(tmp_path)
    saving.save_state(4, ARRAYS, {})
    saving.wait_until_finished()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 5 .* there are \[4\]"):
        saving.restore_state(5, ARRAYS)


def randomized(model, seed):
    rng = np.random.default_rng(seed)
    state = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), state))
    return model


def test_a_model_and_its_optimizer_are_restored_in_place(tmp_path):
    model = randomized(toys.tiny_decoder(scan_layers=False), 1)
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
    optimizer.update(model, nnx.state(model, nnx.Param))
    saving = manager(tmp_path)
    assert saving.save(2, model, optimizer, custom_metadata={"note": "x"})
    saving.close()

    other = randomized(toys.tiny_decoder(scan_layers=False), 2)
    fresh = nnx.Optimizer(other, optax.adam(0.1), wrt=nnx.Param)
    assert manager(tmp_path).maybe_restore(other, fresh) == (2, {"note": "x"})
    toys.assert_bit_identical(nnx.state(other, nnx.Param), nnx.state(model, nnx.Param))
    toys.assert_bit_identical(nnx.state(fresh), nnx.state(optimizer))
    tokens = jnp.arange(6)[None]
    np.testing.assert_array_equal(other(tokens)[0], model(tokens)[0])


def lora_model():
    from tunix.models import lora

    config = lora.LoraConfig(rank=2, alpha=2.0)
    return lora.apply_lora(toys.tiny_decoder(), config, rngs=nnx.Rngs(0))


def test_adapters_alone_are_saved_and_restored(tmp_path):
    model = randomized(lora_model(), 1)
    saving = manager(tmp_path)
    saving.save(1, model, save_only_lora_params=True)
    saving.wait_until_finished()
    other = randomized(lora_model(), 2)
    base = np.array(other.embed_tokens.w[...])
    saving.maybe_restore(other, restore_only_lora_params=True)
    toys.assert_bit_identical(nnx.state(other, nnx.LoRAParam), nnx.state(model, nnx.LoRAParam))
    np.testing.assert_array_equal(other.embed_tokens.w[...], base)
    with pytest.raises(checkpoint_storage.CheckpointMismatchError, match=r"no array for embed_tok"):
        saving.maybe_restore(lora_model())


def trainer(directory, model=None, **settings):
    config = peft_trainer.TrainingConfig(
        eval_every_n_steps=1,
        checkpoint_root_directory=str(directory),
        checkpointing_options=EVERY_STEP,
        pbar_description=None,
        **settings,
    )
    model = model or toys.Linear(rngs=nnx.Rngs(0))
    return peft_trainer.PeftTrainer(model, optax.adam(0.1), config).with_loss_fn(toys.squared_error)


def test_a_trainers_checkpoint_gives_its_parameters_to_a_model(tmp_path):
    run = trainer(tmp_path)
    run.train([toys.regression(4)] * 2)
    run.close()
    model = toys.Linear(rngs=nnx.Rngs(9))
    step, _ = manager(tmp_path).maybe_restore(model)
    assert step == 2
    np.testing.assert_array_equal(model.w[...], run.model.w[...])


def test_a_lora_run_saves_no_base_model(tmp_path):
    run = trainer(tmp_path, lora_model()).with_loss_fn(lambda model, x: model(x)[0].mean())
    run.train([{"x": np.arange(6)[None]}])
    run.close()
    names = ocp.PyTreeCheckpointHandler().metadata(tmp_path / "1" / "params").tree
    assert names
    assert all("lora" in name for name in names)


def test_custom_metadata_comes_back_to_the_next_trainer(tmp_path):
    class Learner(peft_trainer.PeftTrainer):
        def custom_checkpoint_metadata(self):
            return {"global_step": self.train_steps * 10}

    config = peft_trainer.TrainingConfig(
        eval_every_n_steps=1, checkpoint_root_directory=str(tmp_path), pbar_description=None
    )

    def learner():
        model = toys.Linear(rngs=nnx.Rngs(0))
        return Learner(model, optax.sgd(0.1), config).with_loss_fn(toys.squared_error)

    run = learner()
    assert run.restored_metadata is None
    run.train([toys.regression(4)] * 3)
    run.close()
    assert learner().restored_metadata == {"global_step": 30}


def test_another_model_is_refused_with_what_differs(tmp_path):
    run = trainer(tmp_path)
    run.train([toys.regression(4)])
    run.close()
    with pytest.raises(checkpoint_storage.CheckpointMismatchError) as error:
        trainer(tmp_path, toys.tiny_decoder())
    assert "params: the checkpoint has no array for embed_tokens.w float32[32, 16]" in str(
        error.value
    )
    assert "optimizer: nothing expects the checkpoint's array 0.mu.w float32[4]" in str(error.value)


def test_a_directory_that_cannot_be_made_is_named_before_training(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(checkpoint_storage.CheckpointWriteError) as error:
        trainer(blocker / "checkpoints")
    assert f"cannot write checkpoints to {blocker}/checkpoints: Not a directory" in str(error.value)
    assert "choose another checkpoint_root_directory" in str(error.value)


def test_a_disk_that_cannot_hold_one_checkpoint_is_reported_before_training(tmp_path, monkeypatch):
    usage = checkpoint_storage.shutil.disk_usage(tmp_path)._replace(free=40)
    monkeypatch.setattr(checkpoint_storage.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(checkpoint_storage.CheckpointWriteError, match=r"one needs .* are free"):
        trainer(tmp_path)


def test_a_disk_that_fills_up_is_one_message_and_keeps_the_last_checkpoint(tmp_path):
    """The limit on file sizes makes writing fail as a full disk does, in a process of its own."""
    script = f"""
        import resource, signal
        import jax.numpy as jnp, numpy as np
        from tunix.sft import checkpoint_manager
        from tunix.sft.checkpoints import checkpoint_storage

        manager = checkpoint_manager.CheckpointManager({str(tmp_path)!r})
        manager.save_state(1, {{"a": {{"x": jnp.ones(4)}}}}, {{}})
        manager.wait_until_finished()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        noise = np.random.default_rng(0).normal(size=100_000)
        try:
            manager.save_state(2, {{"a": {{"x": jnp.asarray(noise)}}}}, {{}}, force=True)
            manager.wait_until_finished()
        except checkpoint_storage.CheckpointWriteError as error:
            print("MESSAGE", str(error).replace(chr(10), " "))
        print("LATEST", manager.latest_step())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        timeout=120,
        check=False,
    )
    assert f"MESSAGE could not write a checkpoint to {tmp_path}" in done.stdout, done.stderr[-2000:]
    assert "check free space" in done.stdout
    assert "(step 1 is complete)" in done.stdout
    assert "LATEST 1" in done.stdout


def test_checksums_that_cannot_be_written_are_an_error_of_the_save(tmp_path, monkeypatch, capfd):
    def full(step_directory):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_integrity, "seal", full)
    saving = manager(tmp_path)
    saving.save_state(1, ARRAYS, {})
    with pytest.raises(checkpoint_storage.CheckpointWriteError, match=r": No space left .*step 1"):
        saving.wait_until_finished()
    assert "Traceback" not in capfd.readouterr().err
