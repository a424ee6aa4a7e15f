"""Post-training of large language models in JAX and Flax NNX.

Importing this package imports nothing else: a name below is loaded from its
module when it is first used, so ``import tunix`` costs neither JAX nor numpy.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from tunix.utils import reference_names
from tunix.version import __version__

# Asked last of all, about modules that nothing else has found.
sys.meta_path.append(reference_names.Finder)

if TYPE_CHECKING:  # The same names for editors and type checkers; a test holds the two together.
    from tunix.generate.base_sampler import SamplerOutput
    from tunix.generate.sampler import CacheConfig, Sampler
    from tunix.models.automodel import AutoModel
    from tunix.models.llama3.model import Llama3
    from tunix.rl.grpo.grpo_learner import GRPOConfig, GrpoConfig, GRPOLearner, GrpoLearner
    from tunix.rl.ppo.ppo_learner import PPOConfig, PpoConfig, PPOLearner, PpoLearner
    from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
    from tunix.rl.rl_learner import RewardFn
    from tunix.rl.rollout.base_rollout import RolloutConfig
    from tunix.sft.checkpoint_manager import CheckpointManager
    from tunix.sft.dpo.cpo_trainer import CPOTrainer, CPOTrainingConfig
    from tunix.sft.dpo.dpo_trainer import (
        DPOTrainer,
        DpoTrainer,
        DPOTrainingConfig,
        DpoTrainingConfig,
        ORPOTrainer,
        OrpoTrainer,
        ORPOTrainingConfig,
        OrpoTrainingConfig,
    )
    from tunix.sft.dpo.kto_trainer import KTOTrainer, KTOTrainingConfig
    from tunix.sft.dpo.reward_model import RewardModel
    from tunix.sft.dpo.reward_trainer import RewardTrainer, RewardTrainingConfig
    from tunix.sft.dpo.simpo_trainer import SimPOTrainer, SimPOTrainingConfig
    from tunix.sft.metrics_logger import MetricsLogger, MetricsLoggerOptions
    from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig, TrainingInput
    from tunix.tokenizers.tokenizer_adapter import Tokenizer, TokenizerAdapter

_MODULE_OF_NAME = {
    "AutoModel": "tunix.models.automodel",
    "CPOTrainer": "tunix.sft.dpo.cpo_trainer",
    "CPOTrainingConfig": "tunix.sft.dpo.cpo_trainer",
    "CacheConfig": "tunix.generate.sampler",
    "CheckpointManager": "tunix.sft.checkpoint_manager",
    "ClusterConfig": "tunix.rl.rl_cluster",
    "DPOTrainer": "tunix.sft.dpo.dpo_trainer",
    "DPOTrainingConfig": "tunix.sft.dpo.dpo_trainer",
    "DpoTrainer": "tunix.sft.dpo.dpo_trainer",
    "DpoTrainingConfig": "tunix.sft.dpo.dpo_trainer",
    "GRPOConfig": "tunix.rl.grpo.grpo_learner",
    "GRPOLearner": "tunix.rl.grpo.grpo_learner",
    "GrpoConfig": "tunix.rl.grpo.grpo_learner",
    "GrpoLearner": "tunix.rl.grpo.grpo_learner",
    "KTOTrainer": "tunix.sft.dpo.kto_trainer",
    "KTOTrainingConfig": "tunix.sft.dpo.kto_trainer",
    "Llama3": "tunix.models.llama3.model",
    "MetricsLogger": "tunix.sft.metrics_logger",
    "MetricsLoggerOptions": "tunix.sft.metrics_logger",
    "ORPOTrainer": "tunix.sft.dpo.dpo_trainer",
    "ORPOTrainingConfig": "tunix.sft.dpo.dpo_trainer",
    "OrpoTrainer": "tunix.sft.dpo.dpo_trainer",
    "OrpoTrainingConfig": "tunix.sft.dpo.dpo_trainer",
    "PPOConfig": "tunix.rl.ppo.ppo_learner",
    "PPOLearner": "tunix.rl.ppo.ppo_learner",
    "PeftTrainer": "tunix.sft.peft_trainer",
    "PpoConfig": "tunix.rl.ppo.ppo_learner",
    "PpoLearner": "tunix.rl.ppo.ppo_learner",
    "RLCluster": "tunix.rl.rl_cluster",
    "RLTrainingConfig": "tunix.rl.rl_cluster",
    "RewardFn": "tunix.rl.rl_learner",
    "RewardModel": "tunix.sft.dpo.reward_model",
    "RewardTrainer": "tunix.sft.dpo.reward_trainer",
    "RewardTrainingConfig": "tunix.sft.dpo.reward_trainer",
    "Role": "tunix.rl.rl_cluster",
    "RolloutConfig": "tunix.rl.rollout.base_rollout",
    "Sampler": "tunix.generate.sampler",
    "SamplerOutput": "tunix.generate.base_sampler",
    "SimPOTrainer": "tunix.sft.dpo.simpo_trainer",
    "SimPOTrainingConfig": "tunix.sft.dpo.simpo_trainer",
    "Tokenizer": "tunix.tokenizers.tokenizer_adapter",
    "TokenizerAdapter": "tunix.tokenizers.tokenizer_adapter",
    "TrainingConfig": "tunix.sft.peft_trainer",
    "TrainingInput": "tunix.sft.peft_trainer",
}

__all__ = [
    "AutoModel",
    "CPOTrainer",
    "CPOTrainingConfig",
    "CacheConfig",
    "CheckpointManager",
    "ClusterConfig",
    "DPOTrainer",
    "DPOTrainingConfig",
    "DpoTrainer",
    "DpoTrainingConfig",
    "GRPOConfig",
    "GRPOLearner",
    "GrpoConfig",
    "GrpoLearner",
    "KTOTrainer",
    "KTOTrainingConfig",
    "Llama3",
    "MetricsLogger",
    "MetricsLoggerOptions",
    "ORPOTrainer",
    "ORPOTrainingConfig",
    "OrpoTrainer",
    "OrpoTrainingConfig",
    "PPOConfig",
    "PPOLearner",
    "PeftTrainer",
    "PpoConfig",
    "PpoLearner",
    "RLCluster",
    "RLTrainingConfig",
    "RewardFn",
    "RewardModel",
    "RewardTrainer",
    "RewardTrainingConfig",
    "Role",
    "RolloutConfig",
    "Sampler",
    "SamplerOutput",
    "SimPOTrainer",
    "SimPOTrainingConfig",
    "Tokenizer",
    "TokenizerAdapter",
    "TrainingConfig",
    "TrainingInput",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module at first use (PEP 562)."""
    if name not in _MODULE_OF_NAME:
        told = reference_names.message(f"tunix.{name}")
        raise AttributeError(told or f"module 'tunix' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF_NAME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted(set(globals()) | set(__all__))
