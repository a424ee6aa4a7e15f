"""Rewards for programs: the share of tests that the Python code of a reply passes.

Read :mod:`tunix.rl.reward_fns.sandbox` first: it says what a program can and cannot do.
"""

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any

from tunix.rl.reward_fns import sandbox, texts


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeExecution:
    """Scores a reply with the share of its tests that pass.

    The column ``tests`` holds, for every row, a list of tests. A test is a mapping with
    ``stdin`` and ``stdout`` (the program must print the latter, but for spaces at the ends of
    lines), or text: Python code that runs behind the program and raises if the program is wrong,
    such as ``assert add(1, 2) == 3``. A program that ends itself before such a test is through
    has not passed. A model that looks for the word which says so can fake it; whoever reads the
    completions sees that.
    """

    limits: sandbox.SandboxLimits = dataclasses.field(default_factory=sandbox.SandboxLimits)
    """What each run may use; every test is a run of its own. Of its output everything counts, up to
    ``file_bytes``."""

    all_or_nothing: bool = False
    """Whether a program that fails a test is worth nothing."""

    workers: int = 4
    """Programs that run at the same time."""

    def __call__(
        self, completions: Sequence[str], tests: Sequence[Sequence[Any] | None]
    ) -> list[float | None]:
        """Return the scores; ``None`` for a row without tests.

        Raises:
            ValueError: If a row has no list of tests, or a test is neither text nor a mapping of
                ``stdin`` and ``stdout``.
            SandboxError: If there is no sandbox here.
        """
        jobs = [
            (i, texts.last_block(completion), test)
            for i, (completion, mine) in enumerate(zip(completions, tests, strict=True))
            for test in _tests_of(mine)
        ]
        with futures.ThreadPoolExecutor(max_workers=self.workers) as pool:
            passed = list(pool.map(lambda job: self._passes(job[1], job[2]), jobs))
        scores: list[float | None] = []
        for i in range(len(completions)):
            mine = [ok for (owner, _, _), ok in zip(jobs, passed, strict=True) if owner == i]
            share = sum(mine) / len(mine) if mine else None
            scores.append(float(share == 1.0) if self.all_or_nothing and mine else share)
        return scores

    def _passes(self, program: str, test: str | Mapping[str, str]) -> bool:
        # What is cut off could be wrong, or the end that is looked for.
        most = max(self.limits.output_bytes, self.limits.file_bytes)
        limits = dataclasses.replace(self.limits, output_bytes=most)
        if isinstance(test, str):
            word = secrets.token_hex(16)
            source = f"{program}\n\n{test}\n\nprint({word!r})\n"
            result = sandbox.run_python(source, limits=limits)
            return result.returncode == 0 and result.stdout.rstrip().endswith(word)
        is_mapping = isinstance(test, Mapping) and set(test) == {"stdin", "stdout"}
        if not is_mapping or not all(isinstance(text, str) for text in test.values()):
            raise ValueError(
                "a test is text or a mapping of stdin and stdout, which are texts, got "
                f"{test!r}; see CodeExecution"
            )
        result = sandbox.run_python(program, stdin=test["stdin"], limits=limits)
        return result.returncode == 0 and _lines(result.stdout) == _lines(test["stdout"])


def _tests_of(row: Sequence[Any] | None) -> Sequence[Any]:
    """Return the tests of a row; the letters of a text or the keys of a mapping are none."""
    if row is None:
        return []
    if isinstance(row, str | bytes | Mapping):
        raise ValueError(f"tests must be a list of tests for every row, got {row!r}; write [...]")
    return row


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
