"""The trainer as its users see it."""

import itertools
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.sft import toys
from tunix.models import lora
from tunix.perf import compile_counter, span
from tunix.sft import hooks, peft_trainer
from tunix.utils import config as config_lib


def make(model=None, *, optimizer=None, loss_fn=toys.squared_error, **settings):
    config = peft_trainer.TrainingConfig(
        **({"eval_every_n_steps": 2, "pbar_description": None} | settings)
    )
    model = model or toys.Linear(rngs=nnx.Rngs(0))
    trainer = peft_trainer.PeftTrainer(model, optimizer or optax.adam(0.1), config)
    return trainer if loss_fn is None else trainer.with_loss_fn(loss_fn)


def batches(n, num_rows=8):
    return [toys.regression(num_rows, seed=seed) for seed in range(n)]


def history(trainer, name, mode="train"):
    return trainer.metrics_logger.get_metric_history("", name, mode)


def test_training_lowers_the_loss_and_the_callers_model_has_learned():
    model = toys.Linear(rngs=nnx.Rngs(0))
    trainer = make(model)
    trainer.train([toys.regression(8)] * 60)
    losses = history(trainer, "loss")
    assert len(losses) == 60
    assert losses[-1] < 0.5 * losses[0]
    batch = toys.regression(8)
    expected = toys.squared_error(model, **batch).finalize()["loss"]
    np.testing.assert_allclose(trainer.evaluate([batch])["loss"], expected, rtol=1e-5)


def test_accumulation_takes_the_same_steps_as_whole_batches():
    whole = toys.regression(8)
    halves = [toys.rows(whole, 0, 3), toys.rows(whole, 3, 8)]
    one, two = make(), make(gradient_accumulation_steps=2)
    one.train([whole] * 5)
    two.train(halves * 5)
    np.testing.assert_allclose(two.model.w[...], one.model.w[...], rtol=1e-5)
    np.testing.assert_allclose(history(two, "loss"), history(one, "loss"), rtol=1e-5)
    assert (one.train_steps, one.iter_steps) == (5, 5)
    assert (two.train_steps, two.iter_steps) == (5, 10)


def test_batches_left_over_at_the_end_make_one_last_step():
    trainer = make(gradient_accumulation_steps=2)
    trainer.train(batches(5))
    assert (trainer.train_steps, trainer.iter_steps) == (3, 5)
    weight = toys.regression(8, seed=4)["weights"].sum()
    np.testing.assert_allclose(history(trainer, "loss_weight")[-1], weight, rtol=1e-6)


def test_a_decoders_step_does_not_depend_on_how_its_rows_are_split_or_sliced():
    batch = toys.token_batch(8, 6)

    def after(*sizes, slice_positions):
        trainer = make(toys.tiny_decoder(), loss_fn=None, optimizer=optax.sgd(1e-2))
        edges = np.cumsum([0, *sizes])
        parts = [toys.rows(batch, a, b) for a, b in itertools.pairwise(edges)]
        if slice_positions:
            parts = [trainer.model_input(part) for part in parts]
        trainer.step_on(parts)
        return jax.device_get(trainer.state.params)

    before = jax.device_get(make(toys.tiny_decoder()).state.params)
    whole = after(8, slice_positions=False)
    for other in (after(4, 4, slice_positions=True), after(3, 3, 2, slice_positions=False)):
        gap = sum(np.sum((other[n] - whole[n]) ** 2) for n in whole)
        moved = sum(np.sum((whole[n] - before[n]) ** 2) for n in whole)
        assert np.sqrt(gap / moved) < 1e-5


def test_max_steps_counts_optimizer_steps_and_draws_no_batch_it_does_not_use():
    drawn = []

    def data():
        for batch in batches(100):
            drawn.append(1)
            yield batch

    trainer = make(max_steps=3, gradient_accumulation_steps=2)
    trainer.train(data())
    assert trainer.train_steps == 3
    assert len(drawn) == 6


def test_training_goes_on_with_the_next_call():
    trainer = make()
    trainer.train(batches(2))
    trainer.train(batches(3))
    assert trainer.train_steps == 5
    assert int(trainer.state.step) == 5


def test_a_scalar_loss_counts_micro_batches_alike():
    def loss_fn(model, x, y, weights):
        return ((model(x) - y) ** 2).mean()

    trainer = make(loss_fn=loss_fn, gradient_accumulation_steps=2)
    data = [toys.regression(2), toys.regression(6, seed=1)]
    model = toys.Linear(rngs=nnx.Rngs(0))
    expected = np.mean([loss_fn(model, **b) for b in data])
    trainer.train(data)
    np.testing.assert_allclose(history(trainer, "loss")[0], expected, rtol=1e-6)


def test_aux_metrics_are_logged():
    def loss_fn(model, x, y, weights):
        return model(x).mean(), {"rows": (jnp.float32(x.shape[0] * 3.0), 3.0)}

    trainer = make(loss_fn=None).with_loss_fn(loss_fn, has_aux=True)
    trainer.train(batches(1, num_rows=8))
    assert history(trainer, "rows")[0] == 8.0


def test_the_model_input_function_gets_the_raw_batch():
    def loss_fn(model, features):
        return model(features).sum()

    trainer = make(loss_fn=loss_fn).with_gen_model_input_fn(lambda rows: {"features": rows})
    trainer.train([np.ones((2, 4), np.float32)])
    assert trainer.train_steps == 1


def test_a_batch_of_unknown_kind_names_the_remedy():
    with pytest.raises(TypeError, match="with_gen_model_input_fn"):
        make(loss_fn=None).train([np.zeros((2, 3))])


def test_the_default_loss_trains_a_decoder_on_training_inputs():
    model = toys.tiny_decoder()
    trainer = make(model, loss_fn=None, optimizer=optax.adam(1e-2))
    raw = toys.token_batch(2, 8)
    batch = peft_trainer.TrainingInput(**raw)
    before = jax.device_get(trainer.state.params)
    trainer.train([batch] * 12)
    losses = history(trainer, "loss")
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(history(trainer, "perplexity"), np.exp(losses), rtol=1e-6)
    assert all(not np.array_equal(before[n], p) for n, p in trainer.state.params.items())


def test_the_default_loss_computes_the_head_only_where_there_is_loss():
    trainer = make(toys.tiny_decoder(), loss_fn=None)
    raw = toys.token_batch(2, 16)
    raw["input_mask"][:, :4], raw["input_mask"][:, 4:] = 0.5, 0.0
    assert trainer.model_input(raw)["num_loss_positions"] == 2 * 3
    assert "loss_positions" not in make().model_input(raw)


@pytest.mark.parametrize("seen_before", [[], [0.2], [0.6], [1.0], [1.0, 0.2]], ids=str)
def test_an_evaluation_does_not_depend_on_the_batches_before(seen_before):
    """A resumed run has not seen them; in another shape the seventh digit would differ."""

    def batch(share):
        raw = toys.token_batch(4, 64)
        mask = np.random.default_rng(0).random(raw["input_mask"].shape) < share
        return peft_trainer.TrainingInput(**raw | {"input_mask": mask})

    fresh, used = (make(toys.tiny_decoder(), loss_fn=None) for _ in range(2))
    used.evaluate([batch(share) for share in seen_before] or [batch(0.2)])
    assert used.evaluate([batch(0.2)]) == fresh.evaluate([batch(0.2)])


def test_a_lora_model_trains_its_adapters_alone():
    model = lora.apply_lora(
        toys.tiny_decoder(), lora.LoraConfig(rank=2, alpha=4.0), rngs=nnx.Rngs(1)
    )
    base = {p: np.array(v) for p, v in nnx.to_flat_state(nnx.state(model)) if "lora" not in p[-1]}
    trainer = make(model, loss_fn=None, optimizer=optax.adam(1e-2))
    assert {name.rsplit(".", 1)[-1] for name in trainer.state.params} == {"lora_a", "lora_b"}
    trainer.train([toys.token_batch(2, 8)] * 6)
    after = dict(nnx.to_flat_state(nnx.state(model)))
    for path, value in base.items():
        np.testing.assert_array_equal(after[path][...], value)
    assert np.abs(model.layers.self_attn.q_proj.lora_b[...]).max() > 0
    assert history(trainer, "loss")[-1] < history(trainer, "loss")[0]


def test_without_jit_the_numbers_are_the_same():
    one, other = make(), make()
    one.train(batches(3))
    other.train(batches(3), skip_jit=True)
    np.testing.assert_allclose(history(one, "loss"), history(other, "loss"), rtol=1e-5)


def test_nothing_compiles_after_the_first_steps():
    trainer = make(gradient_accumulation_steps=2)
    trainer.train(batches(4))
    with compile_counter.CompileCounter() as counter:
        trainer.train(batches(8))
    assert counter.count == 0, counter.names


def test_a_step_on_micro_batches_returns_before_its_metrics_are_read():
    trainer = make()
    handle = trainer.step_on([toys.regression(4), toys.regression(4, seed=1)])
    assert handle.step == 1
    result = handle.result()
    assert set(result) >= {"loss", "mse", "grad_norm", "loss_weight", "status"}
    assert all(isinstance(value, float) for value in result.values())
    assert trainer.train_steps == 1
    assert trainer.iter_steps == 2


def test_the_model_is_usable_after_every_step():
    model = toys.Linear(rngs=nnx.Rngs(0))
    trainer = make(model)
    for batch in batches(3):
        trainer.step_on([batch])
        assert np.isfinite(model(batch["x"])).all()
    assert trainer.sync_model() is model


class Recorder(hooks.TrainingHooks):
    def __init__(self):
        self.calls = []

    def on_train_start(self, train_ctx):
        self.calls.append("start")

    def on_train_end(self, train_ctx):
        self.calls.append("end")

    def on_train_step_start(self, train_ctx):
        self.calls.append(f"step {train_ctx.train_steps + 1}")

    def on_train_step_end(self, train_ctx, train_step, train_loss, step_time):
        assert float(train_loss) > 0
        assert step_time > 0
        assert train_ctx.train_steps == train_step
        self.calls.append(f"done {train_step}")

    def on_eval_step_start(self, train_ctx):
        self.calls.append("eval")

    def on_eval_step_end(self, train_ctx, eval_loss):
        self.calls.append(f"eval done {eval_loss > 0}")


def test_hooks_are_called_in_order():
    trainer, recorder = make(eval_every_n_steps=2), Recorder()
    trainer.with_training_hooks(recorder).train(batches(3), batches(2))
    assert recorder.calls == [
        "start", "step 1", "done 1", "step 2", "done 2",
        "eval", "eval done True", "eval", "eval done True",
        "step 3", "done 3", "end",
    ]  # fmt: skip


def test_a_hook_that_raises_ends_the_training():
    class Failing(Recorder):
        def on_train_step_end(self, *args):
            raise RuntimeError("enough")

    trainer = make().with_training_hooks(Failing())
    with pytest.raises(RuntimeError, match="enough"):
        trainer.train(batches(3))


def test_changes_a_hook_makes_to_the_model_count_when_asked_for():
    class Zero(Recorder):
        def on_train_step_start(self, train_ctx):
            train_ctx.model.w[...] = jnp.zeros(4)

    def weights_after(cache_nnx_graph):
        trainer = make(optimizer=optax.sgd(0.0)).with_training_hooks(Zero())
        trainer.train(batches(2), cache_nnx_graph=cache_nnx_graph)
        return np.array(trainer.model.w[...])

    assert np.all(weights_after(cache_nnx_graph=False) == 0)
    assert np.all(weights_after(cache_nnx_graph=True) != 0)


def test_data_hooks_supply_the_batches():
    class Data(hooks.DataHooks):
        def __init__(self):
            self.train, self.eval = iter(batches(5)), []

        def load_next_train_batch(self, train_ctx):
            return next(self.train, None)

        def load_next_eval_batch(self, train_ctx):
            self.eval.append(train_ctx.train_steps)
            return toys.regression(8) if len(self.eval) % 2 else None

    data = Data()
    trainer = make(gradient_accumulation_steps=2, eval_every_n_steps=1).with_data_hooks(data)
    trainer.train([], [])
    assert (trainer.train_steps, trainer.iter_steps) == (3, 5)
    assert data.eval == [1, 1, 2, 2, 3, 3]


def poisoned(step):
    batch = toys.regression(8, seed=step)
    batch["x"][0, 0] = np.nan
    return batch


@pytest.mark.parametrize("inflight", [1, 2, 4])
def test_a_non_finite_batch_is_skipped_reported_and_saved(tmp_path, caplog, inflight):
    options = peft_trainer.MetricsLoggerOptions(log_dir=str(tmp_path))
    trainer = make(metrics_logging_options=options, max_inflight_computations=inflight)
    clean = make()
    data = batches(5)
    with caplog.at_level(logging.WARNING):
        trainer.train([*data[:2], poisoned(7), *data[2:]])
    clean.train(data)
    np.testing.assert_array_equal(trainer.model.w[...], clean.model.w[...])
    assert history(trainer, "skipped_steps").tolist() == [0, 0, 1, 1, 1, 1]
    saved = np.load(tmp_path / "nonfinite" / "step_3.npz")
    np.testing.assert_array_equal(saved["0.x"], poisoned(7)["x"])
    assert [p.name for p in (tmp_path / "nonfinite").iterdir()] == ["step_3.npz"]
    assert "step 3 was skipped: loss nan" in caplog.text
    assert "step_3.npz" in caplog.text
    trainer.close()


def test_a_batch_without_loss_weight_is_reported(caplog):
    batch = toys.regression(4)
    batch["weights"][:] = 0
    trainer = make()
    with caplog.at_level(logging.WARNING):
        trainer.train([batch])
    assert "nothing in its batch has loss weight" in caplog.text


def test_metrics_reach_the_file_under_mode_and_prefix(tmp_path):
    options = peft_trainer.MetricsLoggerOptions(log_dir=str(tmp_path))
    trainer = make(metrics_logging_options=options, metrics_prefix="actor")
    trainer.train(batches(2), batches(1))
    trainer.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["actor/train/loss"] > 0
    assert rows[1]["actor/eval/loss"] > 0


def test_the_tracer_splits_the_time():
    tracer = span.SpanTimer()
    config = peft_trainer.TrainingConfig(eval_every_n_steps=1, pbar_description=None)
    trainer = peft_trainer.PeftTrainer(
        toys.Linear(rngs=nnx.Rngs(0)), optax.sgd(0.1), config, perf_tracer=tracer
    )
    trainer.with_loss_fn(toys.squared_error).train(batches(2), batches(1))
    assert set(tracer.take()) == {"data", "step", "eval"}


def test_an_empty_training_set_is_an_error():
    with pytest.raises(ValueError, match="train_ds has no batch"):
        make().train([])


def test_all_wrong_settings_are_reported_at_once():
    with pytest.raises(config_lib.ConfigError) as error:
        peft_trainer.TrainingConfig(
            eval_every_n_steps=0, max_steps=0, data_sharding_axis="fsdp",
            max_inflight_computations=0, gradient_accumulation_steps=-1,
        )  # fmt: skip
    assert len(error.value.problems) == 5


def test_settings_fall_back_where_they_are_none():
    config = peft_trainer.TrainingConfig(eval_every_n_steps=3)
    assert config.get_with_default("max_steps", 7) == 7
    assert config.get_with_default("eval_every_n_steps", 7) == 3
