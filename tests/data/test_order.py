"""The i-th example of the order is a function of (seed, i), and every example has its turn."""

import collections
import threading

import numpy as np
import pytest

from cryjax.data import order as order_lib
from cryjax.data.order import WINDOW, Order, stream


def listed(order, count, first=0):
    """Examples `first` up to `first + count`: (source, place) each."""
    return [*zip(*(part.tolist() for part in order.places(first, count)), strict=True)]


@pytest.mark.parametrize("length", [1, 2, 6, 1000, 70_000])
def test_an_epoch_holds_each_example_once_and_epochs_differ(length):
    order = Order([length], [0.3], seed=3)
    epochs = [listed(order, length, epoch * length) for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == [(0, place) for place in range(length)]
    assert length < 6 or (epochs[0] != epochs[1] != epochs[2] != epochs[0])


def test_sources_of_one_length_are_shuffled_each_its_own_way_each_epoch():
    seen = listed(Order([600, 600], [1, 1], seed=0), 4 * WINDOW)
    # In the order of their own, which the mixing hides.
    order = Order([600, 600], [1, 1], seed=0)
    epochs = [order._epochs[number](epoch).tolist() for number in range(2) for epoch in range(3)]
    assert all(sorted(epoch) == [*range(600)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    # Two windows have an epoch of each source, and the first 424 of the next.
    for number in range(2):
        places = [place for source, place in seen if source == number][: 2 * WINDOW // 2]
        counted = collections.Counter(epochs[3 * number] + epochs[3 * number + 1][:424])
        assert collections.Counter(places) == counted


def test_order_is_a_function_of_seed_and_number_whatever_was_asked_before():
    lengths, weights = [7, 3000, 2], [1.0, 5.0, 0.001]
    whole = listed(Order(lengths, weights, seed=1), 3 * WINDOW)
    again = Order(lengths, weights, seed=1)
    rng = np.random.default_rng(0)
    for first in rng.integers(len(whole), size=100).tolist():
        count = int(rng.integers(1, len(whole) - first + 1))
        assert listed(again, count, first) == whole[first : first + count]
    assert listed(Order(lengths, weights, seed=1 + 2**32), WINDOW) != whole[:WINDOW]


def test_threads_get_what_one_would_and_make_each_permutation_once(monkeypatch):
    made = collections.Counter()
    plain = order_lib._permutation

    def counted(length, *key):
        made[length, key] += 1
        return plain(length, *key)

    monkeypatch.setattr(order_lib, "_permutation", counted)
    lengths, weights, batch, batches = [2000, 300], [3, 1], 1024, 48
    expected = listed(Order(lengths, weights, seed=5), batch * batches)
    made.clear()
    order, found = Order(lengths, weights, seed=5), {}

    def read(thread):
        for n in range(thread, batches, 16):
            found[n] = listed(order, batch, n * batch)

    threads = [threading.Thread(target=read, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [place for n in range(batches) for place in found[n]] == expected
    epochs = {key: count for (length, key), count in made.items() if length != WINDOW}
    assert epochs and set(epochs.values()) == {1}


@pytest.mark.parametrize(
    ("lengths", "weights"),
    [
        ((5, 9), (1.0, 3.0)),
        ((5, 9, 2000), (1e-4, 7e-4, 1.0)),  # under one of a window
        ((3, 4, 5, 6), (0.1, 0.1, 0.1, 0.1)),
        ((2, 2), (1e-12, 1e12)),
    ],
)
def test_each_source_has_its_share_of_every_window_and_epochs_of_its_own(lengths, weights):
    windows = 40
    order = Order(lengths, weights, seed=0)
    seen = listed(order, windows * WINDOW)
    shares = np.array(weights) / sum(weights)
    for stretch in (1, 3, windows):
        counts = collections.Counter(number for number, _ in seen[: stretch * WINDOW])
        # Each takes its share of what is left, rounded.
        for number, share in enumerate(shares):
            assert abs(counts[number] - share * stretch * WINDOW) < 1.5
    for number, length in enumerate(lengths):
        places = collections.Counter(place for source, place in seen if source == number)
        assert set(places) <= set(range(length))
        turns = [places[place] for place in range(length)]
        assert max(turns) - min(turns) <= 1


def test_a_share_is_rounded_to_the_nearest_from_the_first_example_on():
    """Rounded otherwise, the order would change, and no run could go on as it began."""
    order = Order([5, 9], [1, 2], seed=0)
    for count in range(50):
        assert abs(order._taken(count)[0] - count / 3) < 0.5


def test_shares_are_exact_after_any_time():
    far = 10**10
    taken = Order([5, 9, 4], [0.1, 0.2, 0.7], seed=0)._taken(far)
    assert taken.sum() == far
    assert np.abs(taken - np.array([0.1, 0.2, 0.7]) * far).max() < 2
    assert Order([5, 9], np.array([1, 3]) * 10**9, seed=0)._taken(4 * far).tolist() == [
        far,
        3 * far,
    ]


def test_sources_do_not_take_turns():
    numbers = [number for number, _ in listed(Order([50, 50], [1, 3], seed=0), 40 * WINDOW)]
    same = np.mean(np.equal(numbers[1:], numbers[:-1]))
    assert abs(same - (0.75**2 + 0.25**2)) < 0.01


def test_all_orders_of_an_epoch_are_of_equal_chance():
    places = np.array(listed(Order([3], [1], seed=0), 18_000))[:, 1].reshape(-1, 3)
    found = collections.Counter(map(tuple, places.tolist()))
    assert len(found) == 6
    # Each a thousand times, to five standard deviations.
    assert all(abs(count - 1000) < 5 * (1000 * 5 / 6) ** 0.5 for count in found.values())


def test_streams_of_other_purposes_differ_even_by_zeros():
    drawn = {stream(*key).random_raw() for key in ((5,), (5, 0), (5, 0, 0), (6,), (0, 5), (0,))}
    assert len(drawn) == 6
    assert len({order_lib.CUTS, order_lib.WINDOWS, order_lib.EPOCHS}) == 3


def test_the_order_of_runs_under_way():
    """Changed, no run could go on as it began: neither a release nor another NumPy may do that."""
    order = Order([5, 9], [1, 3], seed=2**33 + 3)
    assert listed(order, 8) == [(1, 2), (1, 3), (1, 6), (0, 0), (1, 8), (1, 8), (0, 3), (1, 1)]
    assert listed(order, 4, 4096 * 10**7) == [(1, 2), (1, 4), (1, 8), (1, 3)]
    assert Order([6], [1], seed=0).places(600, 6)[1].tolist() == [3, 5, 2, 1, 4, 0]


@pytest.mark.parametrize(
    ("lengths", "weights", "named"),
    [
        ([], [], "sources"),
        ([3, 0], [1, 1], "sources"),
        ([2**32], [1], "sources"),
        ([3, 4], [1], "weights"),
        ([3, 4], [1, 0], "weights"),
        ([3, 4], [1, float("inf")], "weights"),
        ([3, 4], [1, float("nan")], "weights"),
    ],
)
def test_impossible_sources_are_named(lengths, weights, named):
    with pytest.raises(ValueError, match=named):
        Order(lengths, weights, seed=0)
