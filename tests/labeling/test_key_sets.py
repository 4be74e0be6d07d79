import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ray_fer.labeling.key_sets import Aliases, KeySet, SortedHashes

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


def test_a_key_is_known_by_both_of_its_halves() -> None:
    keys = KeySet()
    keys.add(np.array([[1, 2], [10, 20]], np.uint64))
    wanted = np.array([[1, 2, 1, 3], [10, 20, 30, 10]], np.uint64)
    assert keys.contains(wanted).tolist() == [True, True, False, False]


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
