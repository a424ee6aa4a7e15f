"""Evaluation by generation in the trainer: logged, decisive, and without a trace in training."""

import json
import types

import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from tests.sft import resumable_run, toys
from tests.sft.checkpoints import resume_test
from tunix.data import questions
from tunix.sft import peft_trainer
from tunix.sft.checkpoints import best_checkpoint
from tunix.sft.loop import early_stopping, generation_eval, reply_scores

ASKED = questions.Questions(
    token_ids=[[1, 2], [3]], texts=["one two", "three"], columns={"reference": ["yes", "no"]}
)


def reply_of(*texts):
    """Return what answers with ``texts``, whatever the model."""

    def reply(model, token_ids):
        assert list(token_ids) == ASKED.token_ids
        return [types.SimpleNamespace(text=t, num_tokens=len(t), is_cut=t == "") for t in texts]

    return reply


def evaluator(*texts, scores=(reply_scores.exact_match,), directory=None):
    return generation_eval.GenerationEval(
        questions=ASKED,
        reply=reply_of(*texts),
        score=reply_scores.Scores(scores),
        directory=directory,
    )


def trainer_for(**settings):
    config = peft_trainer.TrainingConfig(eval_every_n_steps=1, pbar_description=None, **settings)
    trainer = peft_trainer.PeftTrainer(toys.Linear(rngs=nnx.Rngs(0)), optax.sgd(0.01), config)
    return trainer.with_loss_fn(toys.squared_error)


def no_empty(completions):
    return [None if not text else 1.0 for text in completions]


def test_metrics_are_means_over_the_questions_that_a_score_applies_to(tmp_path):
    measure = evaluator("yes", "", scores=(reply_scores.exact_match, no_empty), directory=tmp_path)
    trainer = trainer_for().with_eval_metrics(measure)
    found = trainer.evaluate([toys.regression(4)])
    assert {name: v for name, v in found.items() if name.startswith("generation")} == {
        "generation/exact_match": 0.5,
        "generation/no_empty": 1.0,
        "generation/completion_length": 1.5,
        "generation/truncated": 0.5,
    }
    assert found["loss"] == trainer.with_eval_metrics(None).evaluate([toys.regression(4)])["loss"]
    rows = [json.loads(line) for line in (tmp_path / "000000.jsonl").read_text().splitlines()]
    assert rows[1] == {
        "step": 0,
        "prompt": "three",
        "reference": "no",
        "completion": "",
        "scores": {"exact_match": 0.0, "no_empty": None},
        "num_tokens": 0,
        "is_cut": True,
    }


def test_a_generated_score_stops_training_and_names_the_best_checkpoint(tmp_path):
    accuracy = iter([0.1, 0.9, 0.5, 0.4, 0.3])
    options = ocp.CheckpointManagerOptions(save_interval_steps=1, max_to_keep=1)
    trainer = trainer_for(
        checkpoint_root_directory=str(tmp_path),
        checkpointing_options=best_checkpoint.keep_best(
            options, metric="generation/accuracy", mode="max"
        ),
        early_stopping=early_stopping.EarlyStoppingConfig(
            patience=2, metric="generation/accuracy", mode="max"
        ),
    )
    trainer.with_eval_metrics(lambda trainer: {"generation/accuracy": next(accuracy)})
    trainer.train([toys.regression(4, seed=i) for i in range(9)], [toys.regression(2, seed=99)])
    assert trainer.train_steps == 4
    assert trainer.checkpoint_manager.best_step() == 2
    trainer.close()


def test_a_run_that_is_measured_and_crashes_trains_as_one_that_neither_befell(tmp_path):
    measure = evaluator("yes", "yes", directory=tmp_path / "generations")
    plain = resumable_run.trainer_for(tmp_path / "plain", resume_test.STEPS)
    plain.train(resumable_run.train_data(), resumable_run.eval_data())
    plain.close()

    def measured():
        trainer = resumable_run.trainer_for(tmp_path / "measured", resume_test.STEPS)
        return trainer.with_eval_metrics(measure)

    trainer = measured().with_training_hooks(resume_test.Crash(10))
    with pytest.raises(RuntimeError, match="crash"):
        trainer.train(resumable_run.train_data(), resumable_run.eval_data())
    trainer.close()
    trainer = measured()
    assert trainer.train_steps == 9
    trainer.train(resumable_run.train_data(), resumable_run.eval_data())
    trainer.close()

    log = resume_test.logged(tmp_path / "measured")
    generated = [row["eval/generation/exact_match"] for row in log if "eval/loss" in row]
    assert generated == [0.5, 0.5]
    without = [{k: v for k, v in row.items() if "generation" not in k} for row in log]
    assert without == resume_test.logged(tmp_path / "plain")
    for one, two in zip(toys.leaves(plain.state), toys.leaves(trainer.state), strict=True):
        np.testing.assert_array_equal(one, two)
    files = sorted((tmp_path / "generations").iterdir())
    assert [path.name for path in files] == ["000004.jsonl", "000008.jsonl"]


def test_without_evaluation_data_nothing_would_be_measured():
    with pytest.raises(ValueError, match="got no eval_ds; pass one"):
        trainer_for().with_eval_metrics(evaluator("a", "b")).train([toys.regression(4)])


def test_names_that_evaluations_have_anyway_are_refused():
    trainer = trainer_for().with_eval_metrics(lambda trainer: {"loss": 0.0})
    with pytest.raises(ValueError, match=r"\['loss'\], which evaluations have anyway"):
        trainer.evaluate([toys.regression(4)])

    def truncated(completions):
        return [0.0, 0.0]

    trainer.with_eval_metrics(evaluator("a", "b", scores=(truncated,)))
    with pytest.raises(ValueError, match="must not be called 'truncated'"):
        trainer.evaluate([toys.regression(4)])
