"""Functions by name: those of this library, and those a user adds.

A config field that names a function is a category here; the literal tables next to the
functions are what the registry starts with. Whoever has a function at hand passes the
function itself and needs no name.
"""

import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from tunix.rl import abstract_reward_manager
from tunix.rl.objectives import advantages, aggregation, kl, losses, rollout_correction
from tunix.rl.objectives import token_advantages as token_advantages_lib
from tunix.rl.rollout import engines
from tunix.rl.scoring import rewards
from tunix.utils import config as config_lib

FnT = TypeVar("FnT", bound=Callable[..., Any])

REWARD_MANAGERS: Mapping[str, type[abstract_reward_manager.AbstractRewardManager]] = {
    "sequence-level": rewards.RewardManager
}

_TABLES: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "advantage_estimator": advantages.ADVANTAGE_ESTIMATORS,
    "token_advantage_estimator": token_advantages_lib.TOKEN_ADVANTAGE_ESTIMATORS,
    "policy_loss_fn": losses.POLICY_LOSSES,
    "loss_algo": losses.IMPORTANCE_RATIOS,
    "loss_agg_mode": aggregation.AGGREGATIONS,
    "kl_estimator": kl.KL_ESTIMATORS,
    "rollout_correction": rollout_correction.ROLLOUT_CORRECTIONS,
    "reward_manager": REWARD_MANAGERS,
    "rollout_engine": engines.ROLLOUT_ENGINES,
}


class FunctionRegistry:
    """Named functions by category.

    Args:
        allowed_categories: The categories there are; by default those of the configs, filled with
            the functions of this library.
    """

    DEFAULT_ALLOWED_CATEGORIES = frozenset(_TABLES)

    def __init__(self, allowed_categories: Iterable[str] | None = None):
        chosen = (
            self.DEFAULT_ALLOWED_CATEGORIES if allowed_categories is None else allowed_categories
        )
        self._functions: dict[str, dict[str, Callable[..., Any]]] = {
            category: dict(_TABLES.get(category, {})) for category in sorted(chosen)
        }

    def register(self, category: str, name: str) -> Callable[[FnT], FnT]:
        """Return a decorator that gives a function a name.

        Defining the same function anew, as in a notebook, replaces it.

        Raises:
            ValueError: If there is no such category, or something else has the name.
        """
        functions = self._in(category)

        def add(fn: FnT) -> FnT:
            taken = functions.get(name)
            if taken is not None and _identity(taken) != _identity(fn):
                raise ValueError(
                    f"{category} {name!r} is already {_identity(taken)}; choose another name"
                )
            functions[name] = fn
            return fn

        return add

    def get(self, category: str, name: str) -> Callable[..., Any]:
        """Return the function of a name.

        Raises:
            ValueError: If there is no such category.
            KeyError: If nothing has the name.
        """
        functions = self._in(category)
        if name not in functions:
            hint = config_lib.did_you_mean(name, functions)
            raise KeyError(f"{category} {name!r} is not one of {sorted(functions)}{hint}")
        return functions[name]

    def list_categories(self) -> list[str]:
        """Return the categories in alphabetical order."""
        return list(self._functions)

    def list_functions(self, category: str) -> list[str]:
        """Return the names of a category in alphabetical order.

        Raises:
            ValueError: If there is no such category.
        """
        return sorted(self._in(category))

    def resolve(self, category: str, chosen: str | Callable[..., Any]) -> Callable[..., Any]:
        """Return the function that ``chosen`` names, or ``chosen`` if it is one."""
        return self.get(category, chosen) if isinstance(chosen, str) else chosen

    def _in(self, category: str) -> dict[str, Callable[..., Any]]:
        if category not in self._functions:
            hint = config_lib.did_you_mean(category, self._functions)
            raise ValueError(
                f"there is no category {category!r} among {self.list_categories()}{hint}"
            )
        return self._functions[category]


def _identity(fn: Callable[..., Any]) -> str:
    """Return where a function or class was defined; an object is only itself."""
    if isinstance(fn, (types.FunctionType, type)):
        return f"{fn.__module__}.{fn.__qualname__}"
    return repr(fn)


default_registry = FunctionRegistry()
"""What the configs look names up in."""


def register_policy_loss_fn(name: str) -> Callable[[FnT], FnT]:
    """Return a decorator that names a loss like those of :mod:`tunix.rl.objectives.losses`."""
    return default_registry.register("policy_loss_fn", name)


def get_policy_loss_fn(name: str) -> Callable[..., Any]:
    """Return the policy loss of a name."""
    return default_registry.get("policy_loss_fn", name)


def register_advantage_estimator(name: str) -> Callable[[FnT], FnT]:
    """Return a decorator that names one like those of :mod:`tunix.rl.objectives.advantages`."""
    return default_registry.register("advantage_estimator", name)


def get_advantage_estimator(name: str) -> Callable[..., Any]:
    """Return the advantage estimator of a name."""
    return default_registry.get("advantage_estimator", name)


def register_reward_manager(name: str) -> Callable[[FnT], FnT]:
    """Return a decorator that names a class like those of :mod:`tunix.rl.reward_manager`."""
    return default_registry.register("reward_manager", name)


def get_reward_manager(name: str) -> Callable[..., Any]:
    """Return the reward manager of a name."""
    return default_registry.get("reward_manager", name)
