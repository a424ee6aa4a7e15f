"""Reads damaged files as the library does, and compares what was read with other readers.

A process of its own: it takes one JSON line per case on standard input and answers with one. The
answer is empty where the file was read rightly or refused with a message, else it says what is
wrong. Processor time and memory of a case are limited by the kernel, which kills the process.
"""

import json
import math
import pathlib
import resource
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import safetensors.numpy
import tokenizers
import yaml

from tunix.cli import command
from tunix.cli.schemas import sft_schema
from tunix.data import sft_config, sft_data, sources
from tunix.models import automodel, gguf_file, safetensors_loader
from tunix.tokenizers import tokenizer_adapter

CPU_SECONDS = 20
MEMORY = 2 * 2**30
LONGEST_MESSAGE = 4_000
_CHAT = [{"role": "user", "content": "Hello."}]


def read_model(folder: pathlib.Path, name: str) -> str:
    """Load weights; those of safetensors must be what the library of the format says."""
    source = folder / name if name.endswith(".gguf") else folder
    found = ""
    if name.endswith(".safetensors"):
        ours = safetensors_loader.SafetensorsFile(folder / name)
        try:
            theirs = safetensors.numpy.load_file(folder / name)
        except Exception as error:
            found = f"safetensors refuses it: {error}"
        else:
            if sorted(ours.names) != sorted(theirs):
                found = "safetensors finds other tensors"
            elif not all(_same(ours.read(key), value) for key, value in theirs.items()):
                found = "safetensors reads other values"
    model, _ = automodel.AutoModel.from_pretrained(str(source), precision="exact")
    del model
    return found


def read_gguf(folder: pathlib.Path, name: str) -> str:
    """Load a GGUF file's weights and its tokenizer."""
    gguf_file.GGUFFile(folder / name)
    return read_model(folder, name) + read_tokenizer(folder / name, name)


def read_tokenizer(path: pathlib.Path, name: str) -> str:
    """Load a tokenizer and render a conversation; ids must be those of the file alone."""
    ours = tokenizer_adapter.load_tokenizer(str(path))
    ids = ours.encode("It is 4. é 日本")
    ours.eos_ids(), ours.pad_id(), ours.bos_id()
    if ours.has_chat_template:
        ours.encode_chat([*_CHAT, {"role": "assistant", "content": "4"}])
    if name != "tokenizer.json":
        return ""
    try:
        theirs = tokenizers.Tokenizer.from_file(str(path / name))
    except Exception as error:
        return f"tokenizers refuses it: {error}"
    theirs.no_truncation()
    expected = theirs.encode("It is 4. é 日本", add_special_tokens=False).ids
    return "" if ids == expected else f"{ids} where tokenizers says {expected}"


def read_rows(folder: pathlib.Path, name: str) -> str:
    """Read and tokenize rows; nothing that JSON says may be left out."""
    rows = sources.read_rows(str(folder / name))
    tokenizer = tokenizer_adapter.load_tokenizer(str(folder / "model"))
    settings = sft_config.SftDataConfig(batch_size=2, max_target_length=256)
    sft_data.tokenize_rows(rows, tokenizer, settings, name=str(folder / name))
    if name.endswith(".parquet"):
        return ""
    text = (folder / name).read_bytes().decode("utf-8-sig")
    try:
        values = json.loads(text)
    except ValueError:
        values = [json.loads(line) for line in text.split("\n") if line.strip()]
    values = values if isinstance(values, list) else [values]
    return "" if [row.values for row in rows] == values else "rows differ from what json reads"


def read_settings(folder: pathlib.Path, name: str) -> str:
    """Read settings; each that the file gives must be in the settings of the run."""
    path = folder / name
    request = command.parse(["tunix sft", str(path)], sft_schema.SftRun, "")
    given = dict(_leaves(yaml.safe_load(path.read_text(encoding="utf-8"))))
    run = dict(_leaves(yaml.safe_load(request.resolved_yaml)))
    for key, value in given.items():
        if "$" in str(value):
            continue
        if key not in run or not _equal(value, run[key]):
            return f"{key} was {value!r} and became {run.get(key)!r}"
        if isinstance(value, float) and not math.isfinite(value):
            return f"{key} is {value}"
    return ""


READERS: Mapping[str, Callable[[pathlib.Path, str], str]] = {
    "model": read_model,
    "gguf": read_gguf,
    "tokenizer": read_tokenizer,
    "rows": read_rows,
    "settings": read_settings,
}


def judge(reader: str, folder: pathlib.Path, name: str) -> str:
    """Return what is wrong with how ``reader`` takes ``folder / name``; empty if nothing is."""
    try:
        return READERS[reader](folder, name)
    except (ValueError, OSError, ImportError) as error:
        return _judge_message(str(error), folder, name)
    except BaseException as error:
        last = traceback.format_exc().strip().splitlines()[-9:]
        return f"{type(error).__name__}: " + "\n    ".join(line[:300] for line in last)


def _judge_message(message: str, folder: pathlib.Path, name: str) -> str:
    if name not in message and str(folder) not in message:
        return f"the message does not name the file: {message[:300]}"
    if len(message) > LONGEST_MESSAGE:
        return f"the message has {len(message)} characters: {message[:300]}"
    return ""


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}")
    else:
        yield path, value


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, list) or isinstance(b, list):  # one may stand for a list of one
        as_lists = [x if isinstance(x, list) else [x] for x in (a, b)]
        return str(as_lists[0]) == str(as_lists[1])
    return a == b or str(a) == str(b)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _limit(*, memory: bool) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    if memory:
        status = pathlib.Path("/proc/self/status").read_text()
        size = int(status.partition("VmSize:")[2].split()[0]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))


def main() -> None:
    """Answer case after case."""
    is_limited = False
    for line in sys.stdin:
        case = json.loads(line)
        # Sound files come first and load what every later case uses.
        _limit(memory=not is_limited and not case["is_sound"])
        is_limited = is_limited or not case["is_sound"]
        answer = judge(case["reader"], pathlib.Path(case["folder"]), case["name"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
