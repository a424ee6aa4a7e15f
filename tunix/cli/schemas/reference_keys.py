"""What to tell users of google-tunix, TRL, PEFT and axolotl about keys of theirs that differ.

A key that means something to them must never be ignored: the message says what
to write instead, or that there is nothing of the kind.
"""

import re
from collections.abc import Mapping

from tunix.cli.schemas import structure

_NO_ENGINE_CHOICE = "the built-in engine is the only one; remove it"
_ONE_MODEL = "one model_config serves every role; write it there"
_RUN_DIR = "everything a run writes goes below run_dir; remove it"
_NOT_HERE = "there is nothing of the kind; remove it"
_DATA = "data_path says where data is read from: a file, a pattern, hub:OWNER/NAME"

_TOP_LEVEL = {
    "actor_model_config": _ONE_MODEL,
    "critic_model_config": "the critic of `tunix ppo` starts from the actor; remove it",
    "data_directory": _DATA,
    "data_module": _DATA,
    "data_source": _DATA,
    "dataset_name": _DATA,
    "num_batches": "limit the run with max_steps",
    "num_test_batches": "the evaluation set is read in full; write a smaller file",
    "reference_model_config": _ONE_MODEL,
    "rollout_model_config": _ONE_MODEL,
    "tfds_download": _NOT_HERE,
    "verl_compatible": _NOT_HERE,
}

_NESTED = {
    "model_config.intermediate_ckpt_dir": "nothing is converted on the way; remove it",
    "model_config.model_display": _NOT_HERE,
    "model_config.model_name": "the model's own files say what it is; remove it",
    "rl_training_config.critic_optimizer_config": "only `tunix ppo` trains a critic; remove it",
    "rl_training_config.gradient_accumulation_steps": "write train_micro_batch_size",
    "grpo_config.algo_variant": "write algorithm, outside of the block",
    "ppo_config.algo_variant": "`tunix ppo` is PPO; remove it",
    "rl_training_config.max_inflight_computations": "a rollout waits for its update; remove it",
    "rl_training_config.profiler_options": _NOT_HERE,
    "rollout_config.max_tokens_to_generate": "write rollout_config.total_generation_steps",
    "tokenizer_config.add_bos": "the tokenizer's own files say so; remove it",
    "tokenizer_config.add_eos": "a trained reply ends with its stop token; remove it",
    "tokenizer_config.tokenizer_type": "the files say what they are; remove it",
}

_TRAINING = {
    "checkpoint_root_directory": _RUN_DIR,
    "metrics_logging_options.log_dir": _RUN_DIR,
    "metrics_logging_options.run_name": "run_dir names the run; remove it",
    "perf_metrics_options": "the time split is always measured; remove it",
    "profiler_options.log_dir": _RUN_DIR,
}

_OPTIMIZER, _LOOP, _LORA = "optimizer_config", "training_config", "model_config.lora_config"
_ROLLOUT = "rollout_config"
_QUANTISED = f"write {_LORA}.weight_qtype: nf4 (QLoRA) or int8"

_TRAIN_ON = "write data_config.train_on: replies, the default, or everything"
_COMPUTE = (
    "write model_config.precision: fast, which computes in bfloat16; model_config.dtype is how "
    "parameters are stored"
)

_ELSEWHERE = {
    "adam_beta1": f"write {_OPTIMIZER}.b1",
    "adam_beta2": f"write {_OPTIMIZER}.b2",
    "adam_epsilon": f"write {_OPTIMIZER}.eps",
    "adapter": f"write {_LORA}",
    "assistant_only_loss": _TRAIN_ON,
    "base_model": "write model_config.model_id",
    "bf16": _COMPUTE,
    "cliprange": "write ppo_config.epsilon",
    "cliprange_value": "write ppo_config.clip_range_value",
    "completion_only_loss": _TRAIN_ON,
    "dataset_text_field": "write data_config.columns: {text: NAME}",
    "datasets": "write data_path",
    "eval_steps": f"write {_LOOP}.eval_every_n_steps",
    "fp16": _COMPUTE,
    "gradient_accumulation_steps": f"write {_LOOP}.gradient_accumulation_steps",
    "gradient_checkpointing": "write model_config.remat",
    "importance_sampling_level": "write algorithm: gspo for ratios of whole sequences",
    "kl_coef": "write ppo_config.beta",
    "lam": "write ppo_config.gae_lambda",
    "learning_rate": f"write {_OPTIMIZER}.learning_rate",
    "load_in_4bit": _QUANTISED,
    "load_in_8bit": _QUANTISED,
    "logging_steps": "every step is logged; remove it",
    "lora_alpha": f"write {_LORA}.alpha",
    "lora_dropout": f"write {_LORA}.dropout",
    "lora_r": f"write {_LORA}.rank",
    "lora_target_modules": f"write {_LORA}.module_path, a regular expression",
    "loss_type": "write algorithm (grpo, dapo, drgrpo, cispo), or grpo_config.loss_agg_mode alone",
    "lr": f"write {_OPTIMIZER}.learning_rate",
    "lr_scheduler": f"write {_OPTIMIZER}.schedule_type",
    "lr_scheduler_type": f"write {_OPTIMIZER}.schedule_type",
    "mask_truncated_completions": "write grpo_config.mask_truncated",
    "max_completion_length": f"write {_ROLLOUT}.total_generation_steps",
    "max_grad_norm": f"write {_OPTIMIZER}.max_grad_norm",
    "max_length": "write max_target_length",
    "max_new_tokens": f"write {_ROLLOUT}.total_generation_steps",
    "max_seq_length": "write max_target_length",
    "max_steps": f"write {_LOOP}.max_steps",
    "micro_batch_size": "write batch_size",
    "model_name_or_path": "write model_config.model_id",
    "num_epochs": "write num_train_epochs",
    "num_generations": "write grpo_config.num_generations",
    "num_ppo_epochs": "write ppo_config.num_iterations",
    "optim": f"write {_OPTIMIZER}.opt_type",
    "output_dir": "write run_dir",
    "packing": "write data_config.packing",
    "peft_config": f"write {_LORA}",
    "per_device_eval_batch_size": "write batch_size, which serves evaluation too",
    "per_device_train_batch_size": "write batch_size",
    "r": f"write {_LORA}.rank",
    "report_to": f"write {_LOOP}.metrics_logging_options.wandb; files are always written",
    "reward_funcs": "write reward_functions, Python files",
    "sample_packing": "write data_config.packing",
    "save_steps": f"write {_LOOP}.checkpointing_options.save_interval_steps",
    "save_total_limit": f"write {_LOOP}.checkpointing_options.max_to_keep",
    "scale_rewards": "write grpo_config.advantage_estimator: grpo divides by the deviation of a "
    "group's rewards, drgrpo does not",
    "sequence_len": "write max_target_length",
    "target_modules": f"write {_LORA}.module_path, a regular expression",
    "temperature": f"write {_ROLLOUT}.temperature",
    "train_on_inputs": _TRAIN_ON,
    "use_vllm": _NO_ENGINE_CHOICE,
    "val_set_size": "write train_fraction, the share that is trained on",
    "wandb_project": f"write {_LOOP}.metrics_logging_options.project_name",
    "warmup_ratio": f"write {_OPTIMIZER}.warmup_ratio",
    "warmup_steps": f"write {_OPTIMIZER}.warmup_steps",
    "weight_decay": f"write {_OPTIMIZER}.weight_decay",
}
"""Keys of TRL, PEFT and axolotl, which stand in no block."""

_WHERE_THERE_IS: Mapping[str, Mapping[str, str]] = {
    "grpo_config": {
        "per_device_train_batch_size": "write batch_size, which counts prompts; TRL counts their "
        "completions, grpo_config.num_generations of each",
    },
    "max_response_length": {"max_completion_length": "write max_response_length"},
    "rl_training_config": {
        "gradient_accumulation_steps": f"write {_LOOP}.train_micro_batch_size, the prompts at a "
        "time; batch_size is all of a step",
    },
}
"""Key of a command -> what that command says otherwise."""

_IN_BLOCKS = {
    f"{_LORA}.{key}": _ELSEWHERE[key]
    for key in ("r", "lora_alpha", "lora_dropout", "target_modules", "load_in_4bit", "load_in_8bit")
} | {f"{_OPTIMIZER}.lr": _ELSEWHERE["lr"]}

NOTES: Mapping[str, str] = {
    key: f"known key of google-tunix, not supported here: {text}"
    for key, text in {
        **_TOP_LEVEL,
        **_NESTED,
        **{f"training_config.{key}": text for key, text in _TRAINING.items()},
        **{
            f"rl_training_config.{key}": text
            for key, text in _TRAINING.items()
            if not key.startswith("profiler_options")
        },
    }.items()
}
"""Dotted key -> sentence."""


def notes_for(run_class: type) -> Mapping[str, str]:
    """Return what a command says to keys it does not have: dotted key -> sentence.

    What users of other libraries are told to write are keys that the command has.
    """
    known = set(structure.dotted_keys(run_class))
    found = dict(NOTES)
    texts = _ELSEWHERE | _IN_BLOCKS
    for key, otherwise in _WHERE_THERE_IS.items():
        texts |= otherwise if key in known else {}
    for key, text in texts.items():
        if "rl_training_config" in known:
            text = text.replace(f"{_LOOP}.", "rl_training_config.")
            text = text.replace(_OPTIMIZER, "rl_training_config.actor_optimizer_config")
        written = _WRITTEN.search(text)
        if key not in known and (written is None or written[1] in known):
            said = f"known key of other libraries, called differently here: {text}"
            found.setdefault(key, said)
    return found


_WRITTEN = re.compile(r"write ([a-z_0-9]+(?:\.[a-z_0-9]+)*)")
