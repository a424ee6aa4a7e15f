"""Settings of ``tunix grpo``: one block of settings, whose defaults the algorithm chooses."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from tunix.cli.schemas import rl_schema
from tunix.rl.grpo import (
    cispo_learner,
    dapo_learner,
    drgrpo_learner,
    gspo_learner,
    reinforce_plus_plus_learner,
    rloo_learner,
)
from tunix.rl.grpo import grpo_config as grpo_config_lib

ALGORITHMS: Mapping[str, type[grpo_config_lib.GRPOConfig]] = {
    "grpo": grpo_config_lib.GRPOConfig,
    "dapo": dapo_learner.DAPOConfig,
    "drgrpo": drgrpo_learner.DrGRPOConfig,
    "gspo": gspo_learner.GSPOConfig,
    "rloo": rloo_learner.RLOOConfig,
    "reinforce++": reinforce_plus_plus_learner.ReinforcePlusPlusConfig,
    "cispo": cispo_learner.CISPOConfig,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrpoRun(rl_schema.RLRun):
    """``tunix grpo``: train by group-relative policy optimisation or one of its relatives."""

    algorithm: Literal["grpo", "dapo", "drgrpo", "gspo", "rloo", "reinforce++", "cispo"] = "grpo"
    """Whose defaults ``grpo_config`` has."""

    grpo_config: grpo_config_lib.GRPOConfig = dataclasses.field(
        default_factory=grpo_config_lib.GRPOConfig
    )

    @property
    def algorithm_name(self) -> str:
        """The algorithm, as headings name it."""
        return self.algorithm

    @property
    def algo_config(self) -> grpo_config_lib.GRPOConfig:
        """The algorithm's settings."""
        return self.grpo_config


def run_class(settings: Mapping[str, Any]) -> type[GrpoRun]:
    """Return the schema of the algorithm that parsed settings name.

    A name that is none gets GRPO's, which says what there is.
    """
    chosen = ALGORITHMS.get(str(settings.get("algorithm", "grpo")), grpo_config_lib.GRPOConfig)
    field = dataclasses.field(default_factory=chosen)
    return dataclasses.make_dataclass(
        "GrpoRun",
        [("grpo_config", chosen, field)],
        bases=(GrpoRun,),
        frozen=True,
        kw_only=True,
    )
