"""Reward functions for processes: a file that is quick to import."""

import os
import time


def sleeps(completion):
    if completion == "yy":
        time.sleep(5.0)
    return 1.0


def crashes(completion):
    if completion == "yy":
        os._exit(7)
    if completion == "zzz":
        raise KeyError("boom")
    return 1.0
