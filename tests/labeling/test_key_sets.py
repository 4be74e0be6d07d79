import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_fer.labeling import key_sets
from ray_fer.labeling.key_sets import Aliases, KeySet, SortedHashes, look_up

hashes = st.integers(0, 2**64 - 2) | st.integers(0, 8) | st.integers(2**64 - 9, 2**64 - 2)


@given(st.lists(st.lists(hashes, max_size=40), max_size=5), st.lists(hashes, max_size=40))
def test_sorted_hashes_are_a_set(parts: list[list[int]], others: list[int]) -> None:
    """Also of hashes that are anything but uniform, and of repeated ones."""
    held = SortedHashes([np.array(part, np.uint64) for part in parts])
    everything = [value for part in parts for value in part]
    assert held.values().tolist() == sorted(everything)
    assert len(held) == len(everything)
    wanted = [*everything, *others]
    assert held.contains(np.array(wanted, np.uint64)).tolist() == [value in set(everything) for value in wanted]


def test_a_key_is_known_by_both_of_its_hashes() -> None:
    keys = KeySet()
    keys.add(np.array([[1, 2], [10, 20]], np.uint64))
    wanted = np.array([[1, 2, 1, 3], [10, 20, 30, 10]], np.uint64)
    assert keys.contains(wanted).tolist() == [True, True, False, False]


def test_a_search_starts_where_the_hashes_with_its_top_bits_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five hashes have an index of two bits: one of them begins with 00, three with 01, one with 11."""
    monkeypatch.setattr(key_sets, "_SLICE", 2)
    top = 1 << 62
    held = SortedHashes([np.array([3 * top, top + 7, 5, top, 2 * top - 1], np.uint64)])
    assert held._starts.tolist() == [0, 1, 4, 4, 5]
    places, there = held.find(np.array([0, top, top + 8, 2 * top, 4 * top - 1], np.uint64))
    assert (places.tolist(), there.tolist()) == ([0, 1, 3, 4, 5], [False, True, False, False, True])


def test_a_set_says_what_was_met_until_that_is_forgotten() -> None:
    keys = KeySet()
    everything = np.array([range(10), range(10, 20)], np.uint64)
    keys.add(everything)
    assert [len(run.seen) for run in keys._runs] == [2]  # bytes, for ten bits
    shown = np.array([[0, 3, 7, 8, 10, 1], [10, 13, 17, 18, 10, 30]], np.uint64)
    for _ in range(2):
        assert keys.mark_seen(shown).tolist() == [True, True, True, True, False, False]
        assert np.flatnonzero(keys.seen(everything)).tolist() == [0, 3, 7, 8]
        assert [found.tolist() for found in look_up([KeySet(), keys], shown)] == [[True] * 4 + [False] * 2] * 2
        assert not keys.all_seen()
        keys.mark_seen(everything)
        assert keys.all_seen()
        keys.forget_seen()
        assert not keys.seen(everything).any()


def test_keys_are_moved_from_one_set_to_another_and_runs_of_like_size_are_merged() -> None:
    one, other = KeySet(), KeySet()
    one.add(np.array([range(9), range(9)], np.uint64))
    other.add(np.array([[20, 21, 22, 23], [20, 21, 22, 23]], np.uint64))
    other.add(np.array([[24], [24]], np.uint64))
    one.take(other)
    assert (len(one), len(other), one._runs is other._runs) == (14, 0, False)
    # 9, 4 and 1 stay: a run is merged with the one before it where it is larger than half of that.
    assert [len(run) for run in one._runs] == [9, 4, 1]
    one.add(np.array([[25, 26], [25, 26]], np.uint64))
    # 2 with 1, then 3 with 4, then 7 with 9.
    assert [len(run) for run in one._runs] == [16]
    wanted = np.array([[0, 8, 9, 20, 24, 26], [0, 8, 9, 20, 24, 26]], np.uint64)
    assert one.contains(wanted).tolist() == [True, True, False, True, True, True]


def test_an_alias_leads_to_all_of_its_keys() -> None:
    aliases = np.array([[5, 1, 5, 5], [50, 10, 50, 51]], np.uint64)
    keys = np.array([[100, 101, 102, 103], [200, 201, 202, 203]], np.uint64)
    held = Aliases([(aliases[:, :1], keys[:, :1]), (aliases[:, 1:], keys[:, 1:])])
    assert len(held) == 4
    rows, found = held.find(np.array([[1, 2, 5, 5, 9], [10, 10, 50, 99, 9]], np.uint64))
    assert rows.tolist() == [0, 2, 2]
    assert found.tolist() == [[101, 100, 102], [201, 200, 202]]
    again = Aliases([held.pairs(), held.pairs()])
    assert again.find(np.array([[5], [51]], np.uint64))[1].tolist() == [[103, 103], [203, 203]]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 9)), max_size=30))
def test_aliases_are_a_relation(pairs: list[tuple[int, int, int]]) -> None:
    columns = np.array(pairs, np.uint64).reshape(-1, 3).T
    held = Aliases([(columns[:2], np.stack([columns[2], columns[2] + np.uint64(1)]))])
    wanted = np.array([(a, b) for a in range(7) for b in range(4)], np.uint64).T
    rows, found = held.find(wanted)
    expected = sorted((a * 4 + b, key, key + 1) for a, b, key in pairs)
    assert sorted(zip(rows.tolist(), *found.tolist(), strict=True)) == expected


def test_there_may_be_no_alias() -> None:
    rows, found = Aliases().find(np.array([[1], [1]], np.uint64))
    assert (rows.tolist(), found.shape) == ([], (2, 0))
