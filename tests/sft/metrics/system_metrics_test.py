"""The machine's metrics of a step follow from what happened in it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.sft import toys
from tunix.models import flops
from tunix.models.llama3 import model as llama3
from tunix.perf import machine, span
from tunix.sft import metrics_logger, peft_trainer
from tunix.sft.metrics import system_metrics


def tiny():
    config = llama3.ModelConfig(
        num_layers=1,
        vocab_size=16,
        embed_dim=8,
        hidden_dim=8,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        rope_theta=1e4,
        norm_eps=1e-5,
    )
    return llama3.Llama3(config, rngs=nnx.Rngs(0))


def test_tokens_are_those_of_segments_and_otherwise_all():
    rows = np.zeros((2, 5), np.int32)
    segments = np.array([[1, 1, 2, 0, 0], [1, 1, 1, 1, 1]])
    count = system_metrics.count_tokens
    assert count({"input_tokens": rows, "segment_ids": segments}) == (8, 5)
    assert count({"input_tokens": rows}) == (10, 5)
    assert count({"input_tokens": rows, "segment_ids": jnp.asarray(segments)}) == (10, 5)
    assert count({"x": rows}) == (0, 0)


def test_speed_is_tokens_and_counted_operations_over_seconds(monkeypatch):
    monkeypatch.setattr(machine, "peak_flops", lambda kind: 1e9)
    model = tiny()
    with system_metrics.SystemMetrics(model, span.SpanTimer()) as system:
        values = system.read((0, 0.0), tokens=600, row_length=20, seconds=3.0)
    rate = 200 * flops.training_flops_per_token(model.config, 10.0)
    assert values["system/tokens_per_second"] == 200
    assert values["system/tflops_per_second"] == pytest.approx(rate / 1e12)
    assert values["system/mfu"] == pytest.approx(rate / 1e9 / jax.device_count())
    assert values["system/host_memory_gb"] > 0.05


def test_a_device_without_a_known_peak_has_no_utilisation():
    with system_metrics.SystemMetrics(tiny(), span.SpanTimer()) as system:
        assert "system/mfu" not in system.read((0, 0.0), tokens=6, row_length=2, seconds=1.0)


def test_compilations_and_waits_belong_to_the_step_they_happened_in(monkeypatch):
    timer = span.SpanTimer()
    with system_metrics.SystemMetrics(toys.Noisy(rngs=nnx.Rngs(0)), timer) as system:
        jax.jit(lambda x: x * 3.0 + 1.0)(jnp.ones(7)).block_until_ready()
        monkeypatch.setattr(timer, "totals", lambda: {"data": 0.25, "step": 1.0})
        first = system.read(system.compiled(), 0, 0, 1.0)
        monkeypatch.setattr(timer, "totals", lambda: {"data": 0.5, "step": 2.0})
        second = system.read(system.compiled(), 0, 0, 1.0)
    assert first["system/compiles"] >= 1
    assert first["system/compile_sec"] > 0
    assert second["system/compiles"] == second["system/compile_sec"] == 0
    assert first["system/data_wait_sec"] == second["system/data_wait_sec"] == 0.25
    assert "system/tokens_per_second" not in first


def test_a_trainer_logs_them_every_step():
    import optax

    config = peft_trainer.TrainingConfig(eval_every_n_steps=9, pbar_description=None)
    trainer = peft_trainer.PeftTrainer(tiny(), optax.sgd(0.1), config)
    rows = np.ones((2, 6), np.int32)
    batch = {"input_tokens": rows, "input_mask": np.ones((2, 6), np.float32)}
    trainer.train([batch] * 3)
    history = trainer.metrics_logger.get_metric_history
    mode = metrics_logger.Mode.TRAIN
    assert len(history("", "system/tokens_per_second", mode)) == 3
    compiles = history("", "system/compiles", mode)
    assert compiles[0] >= 1
    assert compiles[2] == 0
