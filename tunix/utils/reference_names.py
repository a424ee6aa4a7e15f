"""What to tell users of google-tunix about names that are not here.

A name that a script imports is never a bare ``ImportError``: the message says what to write
instead, or that its room is still to come. Names that cost a line are kept, see
``docs/reference/compatibility.md``.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

_LATER = "not here yet; it comes with"
_AGENTS = f"{_LATER} agents, under the same name"
_DISTILLATION = f"{_LATER} distillation, under the same name"
_PERF = f"{_LATER} tracing; metrics.jsonl has the times and speed of every step as system/..."
_ENGINE = (
    "there are no external engines; give your own subclass of "
    "tunix.rl.rollout.base_rollout.BaseRollout as ClusterConfig(rollout_engine=...)"
)
_QUEUES = "write off_policy_steps in the algorithm's config: rollouts are then made ahead"
_SHARDING = "axes of a mesh have meanings, see docs/reference/axes.md; nothing is annotated by hand"
_LAYERS = (
    "every family is the decoder of tunix.models.transformer; a layer of your own is described in "
    "docs/how-to/your_own_model.md"
)
_SAFETENSORS = "only safetensors and GGUF files are read: tunix.AutoModel.from_pretrained(path)"
_PACKED = (
    "losses take a packed tunix.rl.common.PolicyBatch, whose masks come from spans; see "
    "docs/how-to/your_own_learner.md"
)
_INTERNAL = "internal to google-tunix; nothing here needs it"

MODULES: Mapping[str, str] = {
    "tunix.cli.reward_fn": "write tunix.rl.reward_fns, or see examples/gsm8k/rewards.py",
    "tunix.cli.utils.data": (
        "give data_path on the command line; in a script, tunix.data.questions reads and filters "
        "prompts and tunix.data.sources batches them"
    ),
    "tunix.distillation": _DISTILLATION,
    "tunix.examples": (
        "examples are files beside the package: examples/gsm8k for questions, and "
        "tunix.data.translation for pairs of sentences"
    ),
    "tunix.generate.beam_search": "there is no beam search; temperature=0 is greedy",
    "tunix.generate.mappings": _ENGINE,
    "tunix.generate.sglang_jax_sampler": _ENGINE,
    "tunix.generate.vllm_async_driver": _ENGINE,
    "tunix.generate.vllm_sampler": _ENGINE,
    "tunix.google": _INTERNAL,
    "tunix.models.gemma.sampler": "write tunix.generate.sampler, which serves every family",
    "tunix.oss.examples": "examples of agents come with agents",
    "tunix.perf.experimental": _PERF,
    "tunix.perf.export": _PERF,
    "tunix.perf.metrics": _PERF,
    "tunix.perf.perfetto": _PERF,
    "tunix.perf.trace": _PERF,
    "tunix.registry": "write tunix.rl.function_registry",
    "tunix.rl.agentic": _AGENTS,
    "tunix.rl.ppo.ppo_helpers": "write tunix.rl.objectives.token_advantages: gae, whiten",
    "tunix.rl.queue": _QUEUES,
    "tunix.rl.rollout.rollout_engine_group": _QUEUES,
    "tunix.rl.rollout.rollout_traffic_router": _QUEUES,
    "tunix.rl.rollout.sglang_jax_rollout": _ENGINE,
    "tunix.rl.rollout.vllm_rollout": _ENGINE,
    "tunix.sft.system_metrics_calculator": (
        "tunix.models.flops counts operations; metrics.jsonl has system/tflops_per_second"
    ),
    "tunix.tests": (
        "tests are not installed; tunix.models.dummy_model_creator makes models with random "
        "weights and tunix.rl.rollout.mock_rollout completions without a model"
    ),
    "tunix.utils.sharding_utils": _SHARDING,
    "tunix.utils.torch_utils": "tunix.models.weight_table maps names of checkpoints",
    "tunix.utils.trajectory_logger": "completions.jsonl of a run has every completion",
} | {
    f"tunix.models.{family}.mapping_{engine}_jax": _ENGINE
    for family in ("llama3", "qwen2", "qwen3")
    for engine in ("sglang", "vllm")
}
"""Modules that are not here, with all below them -> what to do."""

MOVED: Mapping[str, str] = {
    "tunix.generate.tokenizer_adapter": "tunix.tokenizers.tokenizer_adapter",
    "tunix.generate.tokenizer_files": "tunix.tokenizers.tokenizer_files",
    "tunix.models.hf_export": "tunix.models.hf.hf_export",
    "tunix.models.hf_fields": "tunix.models.hf.hf_fields",
    "tunix.models.hf_weights": "tunix.models.hf.hf_weights",
    "tunix.models.hf_write": "tunix.models.hf.hf_write",
    "tunix.rl.rewards": "tunix.rl.scoring.rewards",
    "tunix.rl.token_advantages": "tunix.rl.objectives.token_advantages",
    "tunix.sft.ema": "tunix.sft.loop.ema",
    "tunix.sft.generation_eval": "tunix.sft.loop.generation_eval",
    "tunix.sft.reply_scores": "tunix.sft.loop.reply_scores",
}
"""Modules that google-tunix or older versions of the docs name -> where they are; both import."""

_TRAIN_EXAMPLE = {"TrainExample": _PACKED}
_CACHES = dict.fromkeys(("Cache", "LayerCache"), "caches belong to the sampler: tunix.generate")
_MODEL = dict.fromkeys(
    (
        *("Attention", "Block", "DecoderLayer", "Einsum", "Embedder", "FeedForward", "MLP"),
        *("MoELayer", "RMSNorm", "apply_rope", "apply_rotary_embedding", "K_MASK"),
        *("AttentionType", "QueryPreAttentionNormalisation", "create_sliding_window_mask"),
    ),
    _LAYERS,
) | {
    "GemmaWithScoreHead": "write tunix.sft.dpo.reward_model.RewardModel(model)",
    **_CACHES,
    "ShardingConfig": _SHARDING,
    "shard": _SHARDING,
}

NAMES: Mapping[str, Mapping[str, str]] = {
    "tunix": {
        **dict.fromkeys(("AgenticGRPOConfig", "AgenticGRPOLearner"), _AGENTS),
        **dict.fromkeys(("DistillationTrainer", "DistillationTrainingConfig"), _DISTILLATION),
        **dict.fromkeys(("PerfMetricsConfig", "PerfMetricsExport", "PerfSpanQuery"), _PERF),
        "MetricsBuffer": "write tunix.rl.monitoring.metrics_buffer",
    },
    "tunix.cli.config": dict.fromkeys(
        ("HyperParameters", "initialize"), "tunix.cli.config.load reads YAML and overrides"
    ),
    "tunix.cli.grpo_main": {"GrpoPipeline": "write tunix.cli.grpo_main.main(argv)"},
    "tunix.cli.peft_main": {"PeftPipeline": "write tunix.cli.peft_main.main(argv)"},
    "tunix.generate.sampler": {
        **_CACHES,
        **dict.fromkeys(("sample_best", "sample_top_p"), "write tunix.ops.sampling"),
    },
    "tunix.generate.utils": {
        **dict.fromkeys(
            ("padded_fill_tokens_and_logits", "single_padded_fill_tokens_and_logits"),
            "call the sampler with pad_output=True",
        ),
        "check_sampling_mode_conflict": _INTERNAL,
        "compute_attention_masks": "tunix.ops.cached_attention attends by lengths, without a mask",
        **dict.fromkeys(
            (
                *("MappingError", "ShapeMismatchError", "get_logprobs_from_vllm_output"),
                *("transfer_state_directly", "transfer_state_with_mappings"),
                *("resolve_parallelism_sizes", "verify_state_closeness", "build_flat_dict"),
            ),
            _ENGINE,
        ),
    },
    "tunix.models.automodel": dict.fromkeys(
        (
            *("create_gemma_model_with_nnx_conversion", "create_gemma_model_from_params"),
            "create_gemma3_model_from_checkpoint",
        ),
        _SAFETENSORS,
    ),
    **{f"tunix.models.{name}.model": _MODEL for name in ("gemma", "llama3", "qwen2", "qwen3")},
    "tunix.models.gemma3.model": _MODEL,
    "tunix.models.gemma.params": dict.fromkeys(
        ("load_and_format_params", "load_metadata"), _SAFETENSORS
    ),
    "tunix.models.gemma3.params": {
        "create_tokenizer": "write tunix.tokenizers.tokenizer_adapter.load_tokenizer(path)",
        "create_model_from_checkpoint": _SAFETENSORS,
        "map_from_upstream_checkpoint": _SAFETENSORS,
        "PROMPT_TEMPLATE": "the tokenizer has its template: apply_chat_template",
        **{
            f"GEMMA3_{size}_{kind}": f"write AutoModel.from_pretrained('google/gemma-3-{name}')"
            for size in ("270M", "1B", "4B", "12B", "27B")
            for kind in ("PT", "IT")
            for name in [f"{size.lower()}-{kind.lower()}"]
        },
        "GEMMA3_TOKENIZER": "a model's directory has its tokenizer: load_tokenizer(path)",
    },
    "tunix.models.gemma3.vision": dict.fromkeys(
        ("Encoder", "Encoder1DBlock", "SigLIPShardingConfig", "ViTModel", "VisionExit"), _INTERNAL
    ),
    **{
        f"tunix.models.{family}": {"BACKEND_MAPPINGS": _ENGINE}
        for family in ("llama3", "qwen2", "qwen3")
    },
    "tunix.models.safetensors_loader": dict.fromkeys(
        ("load_and_create_model", "load_and_create_model_opt", "load_and_create_model_orig"),
        "a family's params module has create_model_from_safe_tensors, which streams",
    ),
    "tunix.perf.span": dict.fromkeys(
        ("SpanGroup", "clone_span_or_group", "merge_span_group_trees", "span_group_tostring"), _PERF
    ),
    "tunix.rl.common": {
        **_TRAIN_EXAMPLE,
        "aggregate_loss": "write tunix.rl.objectives.aggregation",
        "compute_kl_divergence": "write tunix.rl.objectives.kl",
        "make_causal_attn_mask": "write tunix.sft.utils.make_causal_attn_mask",
        "build_positions_from_mask": "write tunix.sft.utils.build_positions_from_mask",
        "pad_to_length": "write tunix.generate.utils.pad_to_length",
        **dict.fromkeys(
            ("compute_per_token_logps", "get_per_token_logps", "selective_log_softmax"),
            "write tunix.rl.common.policy_logps",
        ),
        **dict.fromkeys(
            ("make_completion_mask", "np_make_completion_mask", "process_ids"), _PACKED
        ),
        "RepeatIterable": "every source of tunix.data repeats and shuffles",
        "compute_score": "write tunix.rl.inference.inference_worker",
    },
    "tunix.rl.grpo.grpo_learner": {
        **_TRAIN_EXAMPLE,
        "compute_advantages": "write tunix.rl.objectives.advantages.group_relative",
        "compute_rloo_advantages": "write tunix.rl.objectives.advantages.leave_one_out",
        "grpo_loss_fn": "write tunix.rl.objectives.losses or .policy_objective",
    },
    "tunix.rl.grpo.drgrpo_learner": {
        "compute_advantages": "write tunix.rl.objectives.advantages.group_centered"
    },
    "tunix.rl.ppo.ppo_learner": {
        **_TRAIN_EXAMPLE,
        "ppo_policy_loss_fn": "write tunix.rl.objectives.losses or .policy_objective",
        "ppo_value_loss_fn": "write tunix.rl.objectives.critic.value_objective",
        "registry": "write tunix.rl.function_registry.default_registry",
    },
    "tunix.rl.rl_cluster": {"MetricsBuffer": "write tunix.rl.monitoring.metrics_buffer"},
    "tunix.rl.utils": dict.fromkeys(
        (
            *("chunk_slices_by_size", "get_batch_slice", "get_pytree_mesh_info", "to_flat_dict"),
            *("is_sharing_backbone", "is_sharing_weights", "merge_micro_batches"),
            *("put_params_on_memory_kind", "get_partition_spec", "check_divisibility"),
        ),
        _INTERNAL,
    ),
    "tunix.sft.metrics_logger": {"CluBackend": "write TensorboardBackend"},
    "tunix.utils.env_utils": {"SGLANG_JAX_TP_AXIS_NAME": _ENGINE},
    "tunix.utils.math_rewards": {"RewardOutput": _AGENTS},
    "tunix.utils.math_utils": dict.fromkeys(
        ("are_equal_under_sympy", "count_unknown_letters_in_expr", "should_allow_eval"),
        "write grade_answer_sympy, which asks all of it",
    ),
    "tunix.utils.script_utils": {
        "get_dataset": "give data_path, or read with tunix.data.questions",
        "get_train_and_eval_datasets": "give data_path and eval_data_path",
        "profile_and_capture_log": "write tunix.sft.profiler.ProfilerOptions",
    },
}
"""Names that a module does not have, by module -> what to do."""


def message(full_name: str) -> str | None:
    """Return what to tell of a name with its module before it, ``None`` if it is not known."""
    module, _, name = full_name.rpartition(".")
    hint = NAMES.get(module, {}).get(name)
    parts = full_name.split(".")
    for end in range(len(parts), 0, -1):
        hint = hint or MODULES.get(".".join(parts[:end]))
    return hint and f"{full_name} of google-tunix is not here: {hint}"


def hints(module: str) -> Callable[[str], NoReturn]:
    """Return the ``__getattr__`` of a module that lacks some names (PEP 562)."""

    def getattr_of_module(name: str) -> NoReturn:
        told = message(f"{module}.{name}")
        # `from module import name` drops the text of an AttributeError, so it gets the error that
        # it would make of it; for all else, `hasattr` among it, a missing attribute is that.
        if told is not None and _is_from_import(sys._getframe(1)):
            raise ImportError(told, name=module)
        raise AttributeError(told or f"module {module!r} has no attribute {name!r}")

    return getattr_of_module


def _is_from_import(frame: Any) -> bool:
    import dis

    return dis.opname[frame.f_code.co_code[frame.f_lasti]] == "IMPORT_FROM"


class Finder:
    """The last of ``sys.meta_path``: finds modules that moved, and says why others are not here."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return where a module moved to.

        Raises:
            ModuleNotFoundError: If google-tunix has the module.
        """
        del path, target
        if name in MOVED:
            return importlib.machinery.ModuleSpec(name, _MovedLoader())
        if name.startswith("tunix.") and (told := message(name)) is not None:
            # Without `name=`: else `from package import module` would drop it for its own.
            raise ModuleNotFoundError(told)
        return None


class _MovedLoader(importlib.abc.Loader):
    """Makes the old name stand for the very module at its new place."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        """Let the import system make an empty module, which is replaced right away."""

    def exec_module(self, module: types.ModuleType) -> None:
        """Put the module that is meant in place of the empty one."""
        sys.modules[module.__name__] = importlib.import_module(MOVED[module.__name__])
