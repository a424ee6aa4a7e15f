"""Batches of data that does not fit in memory: read, tokenized and packed a window at a time.

A window of examples is shuffled and packed by itself; rows that do not fill a batch move on to
the next window. So the order depends on seed, epoch and window alone, and the position is a few
integers: rows passed over, rows carried, batches given. Going to a position reads the source
from its beginning, without tokenizing what lies before.

Faults in the first window are found at the start, later ones when they are reached.
"""

import dataclasses
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tunix.data import (
    batching,
    errors,
    example_reader,
    fingerprint,
    packing,
    report,
    sft_config,
    sft_data,
    sources,
    tokenize,
)

_Numbered = tuple[int, tokenize.TokenizedExample]
"""An example and the number of its row in the source."""


class SftStream:
    """The batches of a source that is read as they are needed; each ``iter()`` begins anew."""

    def __init__(
        self,
        source: sources.Source,
        tokenizer: tokenize.Tokenizer,
        settings: sft_config.SftDataConfig,
        *,
        window: int = 4096,
        columns: Mapping[str, str] | None = None,
        shard: batching.Shard = batching.WHOLE,
    ):
        """Read the first window, so that its faults are known, and hold on to the rest.

        Args:
            source: Anything that can be read again; data sets of the hub are fetched as read.
            tokenizer: A ``TokenizerAdapter``.
            settings: See ``SftDataConfig``; ``window`` takes the place of ``packing_window``.
            window: Examples in memory, and how far shuffling reaches.
            columns: New name to name in the data, for columns to rename.
            shard: Which rows of every batch this host gets.

        Raises:
            DataError: Lists everything wrong with the rows of the first window.
            TypeError: If the source can be read only once.
            ValueError: If a batch does not divide among the hosts, or there is no full batch.
        """
        if isinstance(source, Iterator):
            raise TypeError(
                f"a {type(source).__name__} can be read only once; pass a path, a list or an "
                "object whose __iter__ begins anew"
            )
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        shard.require_divides(settings.batch_size)
        self.source, self.tokenizer, self.settings = source, tokenizer, settings
        self.window, self.columns = window, columns
        self.report = report.DataReport(source=f"first window of {sources.name_of(source)}")
        first = _Epoch(self, 0, self.report).next_window()
        # Most batches fit into rows of the longest example in the first window.
        lengths = [len(x.tokens) for batch in first for row in batch for _, x in row]
        longest = max(lengths, default=settings.max_target_length)
        self.layout = sft_data.batch_layout(tokenizer.pad_id(), settings, shard, longest=longest)
        if not first and settings.last_batch == "drop":
            raise ValueError(
                "the data makes no full batch; choose a smaller batch_size, or set "
                "last_batch to 'keep'"
            )

    def __iter__(self) -> "StreamIterator":
        """Return an iterator that stands at the beginning."""
        return StreamIterator(self)


@dataclasses.dataclass
class _Place:
    """Where an epoch stands between two windows."""

    window: int = 0
    rows: int = 0
    """Rows passed over."""
    carried: list[int] = dataclasses.field(default_factory=list)
    """Their numbers among all rows."""
    content: int | None = None
    """Fingerprint of the rows passed over; ``None`` if an older version saved the place."""


class StreamIterator(Iterator[batching.Batch]):
    """Iterates over a stream; ``get_state`` and ``set_state`` resume exactly."""

    def __init__(self, stream: SftStream):
        self._stream = stream
        settings = dataclasses.replace(stream.settings, num_epochs=None)
        self._fingerprint = zlib.crc32(repr((settings, stream.window)).encode())
        self._epoch = 0
        self._reader: _Epoch | None = None
        self._start = _Place()  # where the window of the next batch began
        self._batches: list[list[list[_Numbered]]] = []
        self._given = 0

    def __next__(self) -> batching.Batch:
        """Return the next batch.

        Raises:
            DataError: Lists everything wrong with the rows of the window that was reached.
        """
        while self._given >= len(self._batches):
            if self._reader is not None and self._reader.is_finished:
                self._epoch, self._reader = self._epoch + 1, None
            last = self._stream.settings.num_epochs
            if last is not None and self._epoch >= last:
                self._batches, self._given = [], 0
                raise StopIteration
            if self._reader is None:
                self._reader = _Epoch(self._stream, self._epoch)
            self._start = self._reader.place()
            self._batches, self._given = self._reader.next_window(), 0
        rows = self._batches[self._given]
        self._given += 1
        return self._stream.layout([[example for _, example in row] for row in rows])

    def get_state(self) -> dict[str, Any]:
        """Return the position: what ``set_state`` needs to continue with the next batch."""
        return {
            "epoch": self._epoch,
            **dataclasses.asdict(self._start),
            "batch": self._given,
            "fingerprint": self._fingerprint,
            "window_content": None if self._reader is None else self._reader.place().content,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue where ``get_state`` was called; reads the source up to there.

        Raises:
            ValueError: If the state belongs to other settings, or rows are missing or changed.
        """
        if state["fingerprint"] != self._fingerprint:
            raise ValueError(
                "cannot resume the stream: the saved position belongs to other settings; restore "
                "those, or start anew"
            )
        self._epoch, self._given = state["epoch"], state["batch"]
        self._start = _Place(
            state["window"], state["rows"], list(state["carried"]), state.get("content")
        )
        self._reader, self._batches = None, []
        last = self._stream.settings.num_epochs
        if last is None or self._epoch < last:
            self._reader = _Epoch(self._stream, self._epoch)
            self._reader.go_to(self._start)
            if self._given:
                self._batches = self._reader.next_window()
                behind = {fingerprint.KEY: state.get("window_content")}
                fingerprint.require_same(behind, self._reader.place().content, "the stream")


class _Epoch:
    """One pass over the source, window by window."""

    def __init__(self, stream: SftStream, epoch: int, account: report.DataReport | None = None):
        self._stream, self._epoch = stream, epoch
        found = sources.stream_rows(stream.source, columns=stream.columns, streaming=True)
        self._rows = enumerate(found)
        self._examples = example_reader.ExampleReader(
            stream.tokenizer, stream.settings, account or report.DataReport()
        )
        self._window = self._passed = self._content = 0
        self._carried: list[_Numbered] = []
        self.is_finished = False

    def place(self) -> _Place:
        """Return where this pass stands, between two windows."""
        carried = [number for number, _ in self._carried]
        return _Place(self._window, self._passed, carried, self._content)

    def go_to(self, place: _Place) -> None:
        """Pass over rows up to ``place``, keeping those that it carries."""
        wanted = set(place.carried)
        kept = {}
        while self._passed < place.rows:
            example = self._read_one([], only=wanted)
            if self.is_finished:
                raise ValueError(
                    f"cannot resume the stream: it has {self._passed} rows now and had "
                    f"{place.rows} or more; pass the same data"
                )
            if example is not None:
                kept[example[0]] = example
        fingerprint.require_same(dataclasses.asdict(place), self._content, "the stream")
        self._window = place.window
        self._carried = [kept[number] for number in place.carried]

    def next_window(self) -> list[list[list[_Numbered]]]:
        """Return the batches of the next window, as rows of examples."""
        stream, settings = self._stream, self._stream.settings
        examples, problems = list(self._carried), []
        while len(examples) < stream.window + len(self._carried) and not self.is_finished:
            example = self._read_one(problems)
            examples += [] if example is None else [example]
        if self.is_finished and self._passed == 0:
            problems.append("it is empty; expected one row or more")
        elif self.is_finished and not examples and not problems and self._window == 0:
            problems.append("no row is left to train on")
        if problems:
            raise errors.DataError(sources.name_of(stream.source), problems)
        rows = self._lay_out(examples)
        self._window += 1
        full = len(rows) - len(rows) % settings.batch_size
        batches = [rows[i : i + settings.batch_size] for i in range(0, full, settings.batch_size)]
        rest, self._carried = rows[full:], []
        if not self.is_finished:
            self._carried = [example for row in rest for example in row]
        elif rest and settings.last_batch == "keep":
            batches.append(rest)
        return batches

    def _read_one(self, problems: list[str], only: set[int] | None = None) -> _Numbered | None:
        """Return the example of the next row, if it is one of ``only`` and can be used."""
        number, row = next(self._rows, (0, None))
        if row is None:
            self.is_finished = True
            return None
        self._passed += 1
        if isinstance(row, sources.Row):
            self._content = fingerprint.combined([fingerprint.of_row(row.values)], self._content)
        if only is not None and number not in only:
            return None
        if isinstance(row, str):
            problems.append(row)
            return None
        example = self._examples.read(row, problems)
        return None if example is None else (number, example)

    def _lay_out(self, examples: list[_Numbered]) -> list[list[_Numbered]]:
        settings = self._stream.settings
        order = np.arange(len(examples))
        if settings.shuffle_seed is not None:
            key = [settings.shuffle_seed, self._epoch, self._window]
            order = np.random.default_rng(key).permutation(order)
        if not settings.packing:
            return [[examples[i]] for i in order]
        lengths = [len(examples[i][1].tokens) for i in order]
        groups = packing.first_fit_decreasing(lengths, settings.max_target_length)
        return [[examples[order[i]] for i in group] for group in groups]
