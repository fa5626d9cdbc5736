"""Windows hold every training position as a target once, with the history that came before it."""

from __future__ import annotations

import pytest
import torch

from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.data.windows import Windows

WIDTH = 6


def rows_of(lengths: list[int], width: int = WIDTH) -> SequenceRows:
    """All prefixes of users whose items are 100 * user + time, as the training split has them; users are shuffled."""
    histories, targets, users = [], [], []
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0)).tolist()
    for user in order:
        items = [100 * user + time for time in range(lengths[user])]
        for end in range(1, len(items)):
            histories.append(items[max(0, end - width) : end])
            targets.append(items[end])
            users.append(user)
    length = torch.tensor([len(history) for history in histories])
    padded = torch.tensor([history + [-1] * (width - len(history)) for history in histories])
    user = torch.tensor(users)
    return SequenceRows(padded, length, torch.tensor(targets), user % 2, user)


def targets_of(windows: Windows) -> list[tuple[int, int, tuple[int, ...]]]:
    """(user, target, the items before it inside its window)."""
    found = []
    for row in range(len(windows)):
        items = windows.history[row, : windows.length[row]].tolist() + [int(windows.target[row])]
        for place in range(int(windows.length[row])):
            assert int(windows.next_items[row, place]) == items[place + 1]
            if windows.counted[row, place]:
                found.append((int(windows.user[row]), items[place + 1], tuple(items[: place + 1])))
        assert not windows.counted[row, windows.length[row] :].any()
    return found


@pytest.mark.parametrize("keep", [None, 1, 3, 8, 14])
def test_targets_are_those_of_the_rows(keep):
    rows = rows_of([2, 3, 6, 7, 8, 9, 10, 13, 20, 31])
    rows = rows.last_prefixes(keep) if keep else rows
    windows = Windows.of_rows(rows)
    found = targets_of(windows)
    wanted = sorted(zip(rows.user.tolist(), rows.target.tolist(), strict=True))
    assert sorted((user, target) for user, target, _ in found) == wanted
    for user, target, before in found:
        time = target - 100 * user
        assert before == tuple(100 * user + t for t in range(time - len(before), time)), "no gap, nothing later"
        if keep is None:
            assert len(before) == time or len(before) > WIDTH // 2, "at least half of the longest history"
    assert int(windows.fresh.sum()) == len(rows)
    assert (windows.domain == windows.user % 2).all()


def test_a_short_sequence_is_one_window():
    windows = Windows.of_rows(rows_of([3, 7, 2]))
    assert len(windows) == 3 and sorted(windows.length.tolist()) == [1, 2, 6]
    assert torch.equal(windows.length, windows.fresh)


def test_long_sequences_overlap_by_half():
    windows = Windows.of_rows(rows_of([14]))
    found = sorted(zip(windows.target.tolist(), windows.length.tolist(), windows.fresh.tolist(), strict=True))
    assert found == [(4, 4, 4), (7, 6, 3), (10, 6, 3), (13, 6, 3)]


@pytest.mark.parametrize("width", [1, 2, 3])
def test_narrow_windows(width):
    rows = rows_of([5, 2, 9], width)
    found = targets_of(Windows.of_rows(rows))
    wanted = sorted(zip(rows.user.tolist(), rows.target.tolist(), strict=True))
    assert sorted((user, target) for user, target, _ in found) == wanted


def test_parts_stay_windows():
    windows = Windows.of_rows(rows_of([9, 5, 12, 4]))
    part = windows.of_domain(1).to("cpu")
    assert isinstance(part, Windows) and set(part.user.tolist()) == {1, 3}
