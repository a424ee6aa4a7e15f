"""``tunix reward``: train a reward model on pairs of answers."""

import sys
from collections.abc import Sequence

from flax import nnx

from tunix.cli import command, errors
from tunix.cli.loading import build, preference_loading
from tunix.cli.running import run_settings, run_text, training_run
from tunix.cli.schemas import optimizers, reward_schema
from tunix.data.preference import preference_batches
from tunix.models.transformer import decoder as decoder_lib
from tunix.sft import run_directory
from tunix.sft.dpo import reward_model, reward_trainer

_SHOWN = ("loss", "rewards/margins", "rewards/accuracies")


def main(argv: Sequence[str]) -> int:
    """Run the job that ``argv`` describes; ``argv[0]`` is the name of the program."""
    request = command.parse(
        argv, reward_schema.RewardRun, "Train a reward model on pairs of answers."
    )
    if request.only_print:
        print(request.resolved_yaml, end="")
        return 0
    with run_settings.opened(request, "reward") as directory:
        _train(request.run, directory)
    return 0


def _train(run: reward_schema.RewardRun, directory: run_directory.RunDirectory) -> None:
    decoder, path = build.make_model(run.model_config, build.make_mesh(run.model_config.mesh))
    assert isinstance(decoder, decoder_lib.Decoder)
    tokenizer = run_text.make_tokenizer(run.tokenizer_config, decoder, path, directory)
    model = reward_model.RewardModel(decoder, rngs=nnx.Rngs(run.seed))
    data, held_out = preference_loading.load_data(run, tokenizer)
    reports = [dataset.report for dataset in (data, held_out) if dataset is not None]
    training_run.print_header(run.model_config, model, reports, directory)
    length = preference_loading.longest(data, held_out)
    build.report_context(path, decoder, length, "max_prompt_length or max_response_length")
    train_ds = preference_batches.pair_batches(data.examples, run.data, with_last=True)
    eval_ds = None
    if held_out is not None:
        eval_ds = preference_batches.pair_batches(held_out.examples, run.eval_data, with_last=True)
    planned = training_run.plan(run.training_config, run.optimizer_config, train_ds, eval_ds)
    trainer = reward_trainer.RewardTrainer(
        model,
        optimizers.make_optimizer(run.optimizer_config, planned.steps),
        run.objective(
            pbar_description="reward", **training_run.places(run.training_config, directory)
        ),
    )
    row_length = preference_batches.row_length(data.examples, run.data, with_last=True)
    build.report_memory(trainer.memory_estimate(run.batch_size, row_length), training_run.OUT)
    training_run.train(trainer, train_ds, eval_ds, directory, planned=planned, shown=_SHOWN)


if __name__ == "__main__":
    sys.exit(errors.run(main, sys.argv))
