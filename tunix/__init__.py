"""Post-training of large language models in JAX and Flax NNX.

Importing this package imports nothing else: a name below is loaded from its
module when it is first used, so ``import tunix`` costs neither JAX nor numpy.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tunix.version import __version__

if TYPE_CHECKING:  # The same names for editors and type checkers; a test holds the two together.
    from tunix.generate.base_sampler import SamplerOutput
    from tunix.generate.sampler import CacheConfig, Sampler
    from tunix.generate.tokenizer_adapter import Tokenizer, TokenizerAdapter
    from tunix.models.automodel import AutoModel
    from tunix.models.llama3.model import Llama3
    from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
    from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
    from tunix.rl.rl_learner import RewardFn
    from tunix.rl.rollout.base_rollout import RolloutConfig
    from tunix.sft.checkpoint_manager import CheckpointManager
    from tunix.sft.metrics_logger import MetricsLogger, MetricsLoggerOptions
    from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig, TrainingInput

_MODULE_OF_NAME = {
    "AutoModel": "tunix.models.automodel",
    "CacheConfig": "tunix.generate.sampler",
    "CheckpointManager": "tunix.sft.checkpoint_manager",
    "ClusterConfig": "tunix.rl.rl_cluster",
    "GRPOConfig": "tunix.rl.grpo.grpo_learner",
    "GRPOLearner": "tunix.rl.grpo.grpo_learner",
    "Llama3": "tunix.models.llama3.model",
    "MetricsLogger": "tunix.sft.metrics_logger",
    "MetricsLoggerOptions": "tunix.sft.metrics_logger",
    "PeftTrainer": "tunix.sft.peft_trainer",
    "RLCluster": "tunix.rl.rl_cluster",
    "RLTrainingConfig": "tunix.rl.rl_cluster",
    "RewardFn": "tunix.rl.rl_learner",
    "Role": "tunix.rl.rl_cluster",
    "RolloutConfig": "tunix.rl.rollout.base_rollout",
    "Sampler": "tunix.generate.sampler",
    "SamplerOutput": "tunix.generate.base_sampler",
    "Tokenizer": "tunix.generate.tokenizer_adapter",
    "TokenizerAdapter": "tunix.generate.tokenizer_adapter",
    "TrainingConfig": "tunix.sft.peft_trainer",
    "TrainingInput": "tunix.sft.peft_trainer",
}

__all__ = [
    "AutoModel",
    "CacheConfig",
    "CheckpointManager",
    "ClusterConfig",
    "GRPOConfig",
    "GRPOLearner",
    "Llama3",
    "MetricsLogger",
    "MetricsLoggerOptions",
    "PeftTrainer",
    "RLCluster",
    "RLTrainingConfig",
    "RewardFn",
    "Role",
    "RolloutConfig",
    "Sampler",
    "SamplerOutput",
    "Tokenizer",
    "TokenizerAdapter",
    "TrainingConfig",
    "TrainingInput",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module at first use (PEP 562)."""
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module 'tunix' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF_NAME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted(set(globals()) | set(__all__))
