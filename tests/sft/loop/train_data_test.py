"""Where the data stands."""

import json
import logging

import pytest

from tunix.sft.loop import train_data


class Positioned:
    """Counts up; its position is whatever ``encode`` makes of it."""

    def __init__(self, encode, decode):
        self.next, self.encode, self.decode = 0, encode, decode

    def __iter__(self):
        return self

    def __next__(self):
        self.next += 1
        return self.next

    def get_state(self):
        return self.encode(self.next)

    def set_state(self, state):
        self.next = self.decode(state)


def as_dict():
    return Positioned(lambda n: {"next": n}, lambda state: state["next"])


def as_bytes():
    return Positioned(lambda n: bytes([255, n]), lambda state: state[1])


@pytest.mark.parametrize("make", [as_dict, as_bytes])
def test_a_position_survives_json(make):
    data = train_data.TrainData(make())
    assert data.take(3) == [1, 2, 3]
    saved = json.loads(json.dumps(data.state()))
    other = train_data.TrainData(make())
    other.resume(saved, 3)
    assert other.take(2) == [4, 5]


def test_a_data_set_may_keep_the_position_of_its_iterator():
    class Owner(Positioned):
        def __iter__(self):
            while True:
                yield self.__next__()

    data = train_data.TrainData(Owner(lambda n: n, lambda n: n))
    data.take(4)
    assert data.state() == {"state": 4}


def test_data_without_a_position_is_read_up_to_it(caplog):
    data = train_data.TrainData([1, 2, 3, 4])
    assert data.state() == {}
    with caplog.at_level(logging.INFO):
        data.resume({}, 3)
    assert data.take(5) == [4]
    assert "skipped 3 batches" in caplog.text


def test_a_position_saved_by_other_data_is_found_by_count():
    data = train_data.TrainData([1, 2, 3])
    data.resume({"state": {"next": 2}}, 2)
    assert data.take(1) == [3]


def test_nothing_is_drawn_ahead():
    source = as_dict()
    train_data.TrainData(source).take(2)
    assert source.next == 2
