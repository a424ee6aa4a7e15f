"""Reward functions for processes: a file that is quick to import."""

import gc
import itertools
import os
import signal
import struct
import sys
import time

from tunix.rl.scoring import process_channel


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


def own_pid(completion):
    return float(os.getpid())


def own_pid_of_all(completions, **columns):
    return [float(os.getpid())] * len(completions)


def reads_messages(completions, **kwargs):
    return [float(len(completion[0]["content"])) for completion in completions]


def reads_message(completion):
    return float(completion[-1]["content"] == "x")


def reads_prompt_messages(prompts, completions):
    return [float(prompt[-1]["role"] == "user") for prompt in prompts]


def _channel():
    """Return this process's end of its connection to the trainer."""
    (found,) = [one for one in gc.get_objects() if isinstance(one, process_channel.Channel)]
    return found._end


def _half_an_answer():
    _channel().sendall(struct.pack("!Q", 1_000) + b"V" + bytes(10))


def does(prompt, completion):
    """Do what the prompt asks for, if the completion is ``yy``."""
    if completion == "yy":
        return DEEDS[prompt]()
    return 1.0


def does_to_all(prompts, completions):
    if "yy" in completions:
        return DEEDS[prompts[0]]()
    return [1.0] * len(completions)


def lazily(completions):
    return (1.0 / (completion != "yy") for completion in completions)


class Wild:
    """An object that only the process that made it can read."""

    def __reduce__(self):
        return _read_in, (os.getpid(),)


def _read_in(pid):
    if os.getpid() != pid:
        raise RuntimeError("nowhere else")
    return Wild()


class Mute(Exception):
    """An exception whose text cannot be made."""

    def __str__(self):
        raise RuntimeError("no words")

    __repr__ = __str__


class Wordless(Exception):
    """One whose words end the program."""

    def __str__(self):
        sys.exit(3)


class Unnamed(type):
    @property
    def __name__(cls):
        raise RuntimeError("no name")


class Nameless(Exception, metaclass=Unnamed):
    """One whose class has no name to be told."""


class Leaving:
    """An object that ends the program where it is read."""

    def __reduce__(self):
        return sys.exit, (5,)


class Stuck:
    """An object that ends the program where it is written."""

    def __reduce__(self):
        raise KeyboardInterrupt


def _raise(error):
    raise error


def _fork_and_end():
    """End, but leave a child behind that holds the connection open."""
    if os.fork() == 0:
        time.sleep(5.0)
    os._exit(7)


def _fork_and_hang():
    if os.fork() == 0:
        time.sleep(60.0)
    time.sleep(60.0)


def _fork_and(in_child):
    """Do this in a child; return a score of its own from here, once it has ended."""
    child = os.fork()
    if child == 0:
        return in_child()
    _, status = os.waitpid(child, 0)
    return float(os.waitstatus_to_exitcode(status))


def forks(completion, child):
    return _fork_and(CHILDREN[child])


async def forks_later(completion, child):
    return _fork_and(CHILDREN[child])


def forks_of_all(completions, child):
    return [float(score) for score in [_fork_and(CHILDREN[child[0]])] * len(completions)]


CHILDREN = {
    "sys.exit": lambda: sys.exit(3),
    "end": lambda: sys.exit(),
    "return": lambda: -9.0,
    "raise": lambda: _raise(ValueError("in the child")),
}

DEEDS = {
    "exit": lambda: os._exit(7),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "real-time signal": lambda: os.kill(os.getpid(), signal.SIGRTMIN + 3),
    "sys.exit": lambda: sys.exit(3),
    "fork and end": _fork_and_end,
    "fork and hang": _fork_and_hang,
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "hang": lambda: time.sleep(60.0),
    "half, then hang": lambda: (_half_an_answer(), time.sleep(60.0)),
    "half, then end": lambda: (_half_an_answer(), os._exit(7)),
    "noise": lambda: (_channel().sendall(b"no message at all"), time.sleep(60.0)),
    "hang up": lambda: (_channel().close(), time.sleep(60.0)),
    "mute": lambda: _raise(Mute()),
    "long text": lambda: _raise(ValueError("x" * 10_000_000)),
    "surrogate": lambda: _raise(ValueError("bad \ud83d end")),
    "no words": lambda: _raise(Wordless()),
    "no name": lambda: _raise(Nameless("text")),
    "lambda": lambda: lambda: 0,
    "generator": lambda: (1.0 for _ in range(1)),
    "wild": Wild,
    "leaving": Leaving,
    "stuck": Stuck,
    "huge": lambda: bytes(1 << 27),
    "endless": lambda: itertools.repeat(1.0),
}
