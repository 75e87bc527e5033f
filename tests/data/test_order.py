"""The i-th example of the order is a function of (seed, i), and every example has its turn."""

import collections

import numpy as np
import pytest

from cryjax.data.order import WINDOW, Order, stream


def first(order, count, start=0):
    return [order[i] for i in range(start, start + count)]


@pytest.mark.parametrize("length", [1, 2, 6, 1000])
def test_an_epoch_holds_each_example_once_and_epochs_differ(length):
    order = Order([length], [0.3], seed=3)
    epochs = [first(order, length, start=epoch * length) for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == [(0, place) for place in range(length)]
    assert length < 6 or (epochs[0] != epochs[1] != epochs[2] != epochs[0])


def test_order_is_a_function_of_seed_and_number_whatever_was_asked_before():
    lengths, weights = [7, 3000, 2], [1.0, 5.0, 0.001]
    whole = first(Order(lengths, weights, seed=1), 3 * WINDOW)
    again = Order(lengths, weights, seed=1)
    for i in np.random.default_rng(0).integers(len(whole), size=300).tolist():
        assert again[i] == whole[i]
    assert first(Order(lengths, weights, seed=2), WINDOW) != whole[:WINDOW]


@pytest.mark.parametrize(
    ("lengths", "weights"),
    [
        ((5, 9), (1.0, 3.0)),
        ((5, 9, 2000), (1e-4, 7e-4, 1.0)),  # under one of a window
        ((3, 4, 5, 6), (0.1, 0.1, 0.1, 0.1)),
        ((2, 2), (1e-12, 1e12)),
    ],
)
def test_each_source_has_its_share_of_any_windows_and_epochs_of_its_own(lengths, weights):
    windows = 40
    order = Order(lengths, weights, seed=0)
    seen = first(order, windows * WINDOW)
    shares = np.array(weights) / sum(weights)
    for stretch in (1, 3, windows):
        counts = collections.Counter(number for number, _ in seen[: stretch * WINDOW])
        # Each takes its share of what is left, rounded; so one is off by one, the next by two.
        for number, share in enumerate(shares):
            assert abs(counts[number] - share * stretch * WINDOW) <= len(lengths)
    for number, length in enumerate(lengths):
        places = collections.Counter(place for source, place in seen if source == number)
        assert set(places) <= set(range(length))
        # A window is shuffled, so that at its end the epochs under way are not whole.
        turns = [places[place] for place in range(length)]
        assert max(turns) - min(turns) <= 1


def test_sources_do_not_take_turns():
    numbers = [number for number, _ in first(Order([50, 50], [1, 3], seed=0), 40 * WINDOW)]
    same = np.mean(np.equal(numbers[1:], numbers[:-1]))
    assert abs(same - (0.75**2 + 0.25**2)) < 0.01


def test_all_orders_of_an_epoch_are_of_equal_chance():
    order = Order([3], [1], seed=0)
    found = collections.Counter(
        tuple(place for _, place in first(order, 3, start=3 * epoch)) for epoch in range(6000)
    )
    assert len(found) == 6
    # Each a thousand times, to five standard deviations.
    assert all(abs(count - 1000) < 5 * (1000 * 5 / 6) ** 0.5 for count in found.values())


def test_streams_of_other_purposes_differ_even_by_zeros():
    drawn = {stream(*key).random_raw() for key in ((5,), (5, 0), (5, 0, 0), (6,), (0, 5), (0,))}
    assert len(drawn) == 6


def test_numbers_of_a_stream_are_those_of_every_version_of_numpy():
    """NEP 19 guarantees bit generators and seed sequences; a run that resumes depends on it."""
    assert stream(0, 1, 2).random_raw() == 907220751537958706
