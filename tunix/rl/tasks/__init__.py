"""Small tasks whose answers a program can check."""

from tunix.rl.tasks.table import TASKS
from tunix.rl.tasks.task import Task

__all__ = ["TASKS", "Task"]
