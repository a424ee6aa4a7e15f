import numpy as np
import pytest

from tunix.rl.objectives import aggregation

# Two completions, of one and of three tokens, and one that is masked.
LENGTHS = np.array([1, 3, 0])
LOSSES = [np.array([4.0]), np.array([1.0, 2.0, 6.0]), np.array([])]


def sums(name, lengths=LENGTHS, losses=LOSSES):
    weights, divisors = aggregation.weigh(
        aggregation.AGGREGATIONS[name], np.asarray(lengths), max_length=5
    )
    return sum(w * loss.sum() for w, loss in zip(weights, losses, strict=True)), divisors.sum()


CASES = [
    pytest.param("token-mean", 13.0, 4.0, id="token-mean: 4+1+2+6 over four tokens"),
    pytest.param("sequence-mean-token-mean", 7.0, 2.0, id="token mean: 4 + 3 over two sequences"),
    pytest.param("sequence-mean-token-sum", 13.0, 2.0, id="token sum: 4 + 9 over two sequences"),
    pytest.param("sequence-mean-token-scale", 13.0, 10.0, id="scale: the sums over 2 x 5"),
]


@pytest.mark.parametrize(("name", "loss_sum", "weight_sum"), CASES)
def test_sums_worked_out_by_hand(name, loss_sum, weight_sum):
    np.testing.assert_allclose(sums(name), (loss_sum, weight_sum), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("token-mean", [1, 1, 0]),
        ("sequence-mean-token-mean", [1, 1 / 3, 0]),
        ("sequence-mean-token-sum", [1, 1, 0]),
        ("sequence-mean-token-scale", [1, 1, 0]),
    ],
)
def test_weights_of_tokens_worked_out_by_hand(name, expected):
    weights, divisors = aggregation.weigh(aggregation.AGGREGATIONS[name], LENGTHS, max_length=5)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert divisors[2] == 0.0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", aggregation.AGGREGATIONS)
def test_sequences_without_a_token_count_nowhere(name):
    assert sums(name, [0, 0], [np.array([]), np.array([])]) == (0.0, 0.0)


@pytest.mark.parametrize("name", aggregation.AGGREGATIONS)
def test_sums_of_parts_are_the_sum_of_the_whole(name):
    parts = [sums(name, LENGTHS[i : i + 1], LOSSES[i : i + 1]) for i in range(3)]
    np.testing.assert_allclose(np.sum(parts, axis=0), sums(name), rtol=1e-6)


@pytest.mark.parametrize(
    "fn",
    [
        lambda lengths, max_length: (1.0, 1.0),
        lambda lengths, max_length: (np.ones(3), np.ones(3)),
        lambda lengths, max_length: (np.full(2, np.inf), np.ones(2)),
    ],
    ids=["no arrays", "one for the masked one, too", "not finite"],
)
def test_what_is_no_weight_is_refused(fn):
    with pytest.raises(ValueError, match=r"two finite arrays of shape \(2,\)"):
        aggregation.weigh(fn, LENGTHS, max_length=5)
