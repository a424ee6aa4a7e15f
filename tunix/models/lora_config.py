"""Settings of low-rank adapters, and which projections their patterns name."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping

from tunix.utils import config as config_lib

ALL_LINEAR = "all-linear"
"""Pattern that adapts every projection of attention and MLP."""

ALIASES: Mapping[str, str] = {
    "q_einsum": "q_proj",
    "kv_einsum": "(?:k_proj|v_proj)",
    "qkv_einsum": "(?:q_proj|k_proj|v_proj)",
    "attn_vec_einsum": "o_proj",
}
"""Names of google-tunix, and what they stand for inside a pattern."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig(config_lib.Config):
    """Which projections get adapters, and of which kind and size."""

    rank: int
    """Width between the two factors of an adapter."""
    alpha: float
    """The adapter's output is multiplied with `alpha / rank`."""
    module_path: str = ALL_LINEAR
    """A regular expression for module paths (`.*q_proj|.*v_proj`), or `all-linear`."""
    use_rslora: bool = False
    """Multiplies with `alpha / sqrt(rank)` instead (rsLoRA, arXiv:2312.03732)."""
    use_dora: bool = False
    """Trains the length of every output column too (DoRA, arXiv:2402.09353)."""
    dropout: float = 0.0
    """Part of an adapter's inputs that training drops; a reference drops nothing. Reinforcement
    learning must not drop: the log-probabilities that it compares are those of one function."""
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Other ranks: a regular expression for the end of a module path, and the rank of those."""
    alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Other alphas, likewise."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        ranks = {"rank": self.rank} | _entries("rank_pattern", self.rank_pattern)
        alphas = {"alpha": self.alpha} | _entries("alpha_pattern", self.alpha_pattern)
        for name, rank in ranks.items():
            if not isinstance(rank, int) or rank < 1:
                yield f"{name} must be a whole number of at least 1, got {rank!r}"
        for name, alpha in alphas.items():
            if not isinstance(alpha, int | float) or not alpha > 0:
                yield f"{name} must be a positive number, got {alpha!r}"
        if not 0.0 <= self.dropout < 1.0:
            yield f"dropout must be at least 0 and less than 1, got {self.dropout}"
        patterns = [("module_path", part) for part in alternatives(self.module_path)]
        patterns += [("rank_pattern", key) for key in self.rank_pattern]
        patterns += [("alpha_pattern", key) for key in self.alpha_pattern]
        for name, pattern in patterns:
            try:
                re.compile(resolve_aliases(pattern))
            except re.error as error:
                yield f"{name} {pattern!r} is not a regular expression: {error}"

    def rank_of(self, path: str) -> int:
        """Return the rank of the adapter at ``path``; the first pattern that matches decides."""
        return int(_first_match(self.rank_pattern, path, self.rank))

    def alpha_of(self, path: str) -> float:
        """Return the alpha of the adapter at ``path``."""
        return _first_match(self.alpha_pattern, path, self.alpha)

    def select(self, paths: Iterable[str]) -> tuple[str, ...]:
        """Return which module paths get an adapter, in order.

        Raises:
            ConfigError: Listing every pattern, and every alternative of one, that names none.
        """
        paths = tuple(paths)
        matched: set[str] = set()
        problems = []
        for part in alternatives(self.module_path):
            found = {p for p in paths if part == ALL_LINEAR or matches(part, p)}
            if not found:
                problems.append(f"module_path {part!r} matches no projection{_hint(part, paths)}")
            matched |= found
        for name, patterns in (
            ("rank_pattern", self.rank_pattern),
            ("alpha_pattern", self.alpha_pattern),
        ):
            for key in patterns:
                if matched and not any(matches(key, path) for path in matched):
                    hint = _hint(key, sorted(matched))
                    problems.append(f"{name} {key!r} matches no adapted projection{hint}")
        if problems:
            raise config_lib.ConfigError("LoraConfig", problems)
        return tuple(path for path in paths if path in matched)


def matches(pattern: str, path: str) -> bool:
    """Return whether ``pattern`` matches a module path, or what is left of it behind a dot.

    Files call the decoder ``model``: its name may lead a pattern, too.
    """
    whole = f"(?:.*\\.)?(?:{resolve_aliases(pattern)})"
    return bool(re.fullmatch(whole, path) or re.fullmatch(whole, f"model.{path}"))


def resolve_aliases(pattern: str) -> str:
    """Return ``pattern`` with the names of google-tunix replaced by ours."""
    names = "|".join(ALIASES)
    return re.sub(rf"(?<![A-Za-z0-9_])(?:{names})", lambda m: ALIASES[m.group()], pattern)


def alternatives(pattern: str) -> list[str]:
    """Split a pattern at its top-level ``|``, so that each alternative must match something."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(pattern):
        escaped = i > 0 and pattern[i - 1] == "\\"
        depth += (char == "(") - (char == ")") if not escaped else 0
        if char == "|" and depth == 0 and not escaped:
            parts.append(pattern[start:i])
            start = i + 1
    return [*parts, pattern[start:]]


def _entries(name: str, patterns: Mapping[str, float]) -> dict[str, float]:
    return {f"{name}[{key!r}]": value for key, value in patterns.items()}


def _first_match(patterns: Mapping[str, float], path: str, default: float) -> float:
    return next((value for key, value in patterns.items() if matches(key, path)), default)


def _hint(pattern: str, paths: Iterable[str]) -> str:
    """Return the names there are, and the nearest one."""
    names = sorted({path.rsplit(".", 1)[-1] for path in paths})
    bare = pattern.rsplit(".", 1)[-1].lstrip("*")
    hint = f"; there are {names}{config_lib.did_you_mean(bare, [*names, *ALIASES])}"
    is_stacked = not any(re.search(r"\d", path) for path in paths)
    if is_stacked and re.search(r"\d", pattern):
        hint += "; layers have no numbers while they are stacked: name them without (in Python, "
        hint += "load the model with scan_layers=False)"
    return hint
