"""What trainers of preferences share: reference log-probabilities and losses of whole steps."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import optax
from flax import nnx

from tunix.data import tokenize
from tunix.data.preference import preference_batching
from tunix.models import lora
from tunix.perf import span
from tunix.sft import loss_output, memory_estimate, peft_trainer, training_config
from tunix.sft.dpo import answer_logps, inputs, preference_config
from tunix.sft.dpo import reference as reference_lib
from tunix.sft.loop import step_handle


class Objective(Protocol):
    """What is trained: see :mod:`tunix.sft.dpo.pair_objective`."""

    @property
    def needs_reference(self) -> bool:
        """Whether batches must hold the reference's log-probabilities."""
        ...

    @property
    def is_coupled(self) -> bool:
        """Whether the micro-batches of a step must know of each other."""
        ...

    def statistics(self, model: Any, batch: Any) -> Any:
        """Return what other micro-batches must know of this one."""
        ...

    def couple(self, statistics: Sequence[Any]) -> Sequence[Any]:
        """Return the context of every micro-batch; those of a short step are filled with zeros."""
        ...

    def loss(self, model: Any, batch: Any, context: Any = None) -> loss_output.LossOutput:
        """Return the sums of one micro-batch."""
        ...


class PreferenceTrainer(peft_trainer.PeftTrainer):
    """Trains a policy on preferences; see its subclasses for the objectives.

    A batch that lacks the reference's log-probabilities gets them from ``ref_model``, or from the
    policy without its LoRA adapters where there is no ``ref_model``.

    Where the loss of an example depends on the others of its optimizer step (AOT, KTO), a pass
    without gradient over all micro-batches comes first, so that neither loss nor gradient depends
    on how the step is split. In evaluation, where there are no steps, each batch stands alone.

    Args:
        model: The policy.
        ref_model: The reference; never changed. ``None`` where the objective needs none, the data
            holds its log-probabilities, or the policy has adapters.
        optimizer: Gets the gradient of the mean loss of each optimizer step.
        training_config: Settings of the loop.
        objective: What is trained.
        offload_reference: Whether the weights of ``ref_model`` wait in host memory, now and
            after training, and are on the devices only while a batch needs them.
        tokenizer: Needed for batches of strings only; a ``TokenizerAdapter``.
        metrics_logger: Where metrics go; by default made from the config.
        perf_tracer: Adds up where the time goes.

    Raises:
        ValueError: If the reference is the policy itself, or there is none to offload.
    """

    def __init__(
        self,
        model: nnx.Module,
        ref_model: nnx.Module | None,
        optimizer: optax.GradientTransformation,
        training_config: training_config.TrainingConfig,
        *,
        objective: Objective,
        offload_reference: bool = False,
        tokenizer: tokenize.Tokenizer | None = None,
        metrics_logger: peft_trainer.MetricsLogger | None = None,
        perf_tracer: span.SpanTimer | None = None,
    ):
        if ref_model is model:
            raise ValueError(
                "ref_model is the model that is trained, so it would move along; pass a copy of "
                "it, or None if the model has LoRA adapters"
            )
        if offload_reference and (ref_model is None or not objective.needs_reference):
            raise ValueError(
                "offload_reference moves the weights of ref_model, and none is used: a reference "
                "that is the policy without its adapters, or that the data holds, takes no memory "
                "of its own; set offload_reference to False"
            )
        super().__init__(model, optimizer, training_config, metrics_logger, perf_tracer)
        self.objective, self.tokenizer = objective, tokenizer
        self._couple = jax.jit(objective.couple)
        self._reference: reference_lib.Reference | None = None
        if objective.needs_reference and (ref_model is not None or lora.is_lora_enabled(model)):
            self._reference = reference_lib.Reference(
                model if ref_model is None else ref_model,
                adapters=ref_model is not None,
                data_sharding_axis=training_config.data_sharding_axis,
                offload=offload_reference,
            )
        self.with_loss_fn(objective.loss)

    def model_input(self, batch: Any) -> dict[str, Any]:
        """Return the loss function's arguments for a batch, reference included.

        Raises:
            TypeError: If the batch is of no known kind.
            ValueError: If a reference is needed and there is none.
        """
        if self._gen_model_input_fn is not None:
            batch = self._gen_model_input_fn(batch)
        batch = self.read_batch(batch)
        if self.objective.needs_reference and batch.ref_logps is None:
            batch = self.with_reference(batch)
        if self._stepper.mesh is None:
            batch = answer_logps.on_one_device(batch)
        return {"batch": batch}

    def read_batch(self, batch: Any) -> Any:
        """Return a batch of rows; subclasses that take other kinds extend it.

        Raises:
            TypeError: If the batch is of no known kind.
        """
        if isinstance(batch, preference_batching.PairBatch):
            return batch
        with_last = self.reads_last_token
        if isinstance(batch, inputs.TrainingInput):
            return inputs.pair_batch(inputs.pairs_of_ids(batch), with_last=with_last)
        if isinstance(batch, inputs.DataInput):
            if self.tokenizer is None:
                raise TypeError("a batch of strings (DataInput) needs a trainer with a tokenizer")
            pairs = inputs.pairs_of_strings(
                batch,
                self.tokenizer,
                max_prompt_length=self.max_lengths[0],
                max_response_length=self.max_lengths[1],
            )
            return inputs.pair_batch(pairs, with_last=with_last)
        raise TypeError(
            f"a batch is a {type(batch).__name__}; expected a PairBatch of tunix.data, a "
            "TrainingInput or a DataInput of tunix.sft.dpo.dpo_trainer. Convert it with "
            "trainer.with_gen_model_input_fn(fn)"
        )

    def with_reference(self, batch: Any) -> Any:
        """Return a batch with the reference's log-probabilities.

        Raises:
            ValueError: If there is no reference.
        """
        if self._reference is None:
            raise ValueError(
                "this objective compares with a reference, but there is no ref_model, the model "
                "has no LoRA adapters to leave out, and the batch holds no ref_logps; give one of "
                "them"
            )
        with self._reference.on_device():
            if isinstance(batch, preference_batching.RatingBatch):
                foreign = self._reference(batch.foreign)
                batch = dataclasses.replace(batch, ref_foreign_logps=foreign)
            return dataclasses.replace(batch, ref_logps=self._reference(batch.rows))

    def memory_estimate(self, rows: int, row_length: int) -> memory_estimate.MemoryEstimate:
        """Return what steps will take, in bytes, with a reference that stays on the devices."""
        found = super().memory_estimate(rows, row_length)
        reference = 0 if self._reference is None else self._reference.nbytes
        return dataclasses.replace(found, frozen=found.frozen + reference)

    def step_on(
        self, micro_batches: Sequence[Mapping[str, Any]], *, weight: float = 0.0
    ) -> step_handle.StepHandle:
        """Take one optimizer step, see :meth:`PeftTrainer.step_on`."""
        if self.objective.is_coupled and (self.accumulates or len(micro_batches) > 1):
            found = [self._stepper.compute(self.objective.statistics, x) for x in micro_batches]
            # As many as a whole step has, so that a short last one needs no program of its own.
            missing = (self.config.gradient_accumulation_steps or 1) - len(found)
            found += [self._stepper.zeros_like(found[0])] * missing
            contexts = self._couple(found)[: len(micro_batches)]
            micro_batches = [
                {**batch, "context": context}
                for batch, context in zip(micro_batches, contexts, strict=True)
            ]
        return super().step_on(micro_batches, weight=weight)

    @property
    def max_lengths(self) -> tuple[int | None, int | None]:
        """How many tokens a prompt and an answer of a batch of strings may have."""
        config = self.config
        if isinstance(config, preference_config.PreferenceTrainingConfig):
            return config.max_prompt_length, config.max_response_length
        return None, None

    @property
    def reads_last_token(self) -> bool:
        """Whether the objective needs the hidden state of an answer's last token."""
        return False
