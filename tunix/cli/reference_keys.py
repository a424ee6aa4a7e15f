"""What to tell users of google-tunix about keys of its YAML files that we do not read.

A key that means something to them must never be ignored: the message says what
to write instead, or that there is nothing of the kind.
"""

from collections.abc import Mapping

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
    "rollout_engine": _NO_ENGINE_CHOICE,
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
