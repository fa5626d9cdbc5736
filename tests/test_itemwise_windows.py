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


@pytest.mark.parametrize("most", [0.0, 0.5, 1.0])
def test_thinned_windows_are_subsequences(most):
    windows = Windows.of_rows(rows_of([2, 3, 7, 14, 31] * 40))
    torch.manual_seed(0)
    thin = windows.thinned(most)
    targets_of(thin)  # what follows a position is the next item that is left
    before = after = 0
    for row in range(len(windows)):
        old = windows.history[row, : windows.length[row]].tolist()
        new = thin.history[row, : thin.length[row]].tolist()
        assert new and new == [item for item in old if item in set(new)], "in order, nothing new"
        assert (thin.history[row, len(new) :] == -1).all()
        wanted = {int(windows.next_items[row, t]) for t in range(len(old)) if windows.counted[row, t]} - set(old)
        wanted |= {int(windows.next_items[row, t]) for t in range(len(old)) if windows.counted[row, t]} & set(new)
        found = {int(thin.next_items[row, t]) for t in range(len(new)) if thin.counted[row, t]}
        assert found == wanted - {new[0]}, "a target that is left stays one, and nothing becomes one"
        if len(old) == WIDTH:
            before, after = before + len(old), after + len(new)
    assert torch.equal(thin.target, windows.target) and torch.equal(thin.user, windows.user)
    always = most**WIDTH / (WIDTH + 1) / WIDTH  # of the one item that stays where none would
    assert 1 - after / before == pytest.approx(most / 2 - always, abs=0.02), "half of the greatest share on average"


def test_thinning_by_hand(monkeypatch):
    """Items 0 to 5 and target 6, of which 3 to 6 are targets; 0, 2 and 4 are left out."""
    windows = Windows.of_rows(rows_of([10]))
    windows = windows.select(windows.target == 6)
    history, four = torch.tensor([[0, 1, 2, 3, 4, 5]]), torch.tensor([4])
    windows = Windows(history, windows.length, windows.target, windows.domain, windows.user, four)
    draws = iter([torch.tensor([[0.5]]), torch.tensor([[0.1, 0.8, 0.2, 0.7, 0.3, 0.9]])])  # a share of .4, the items
    monkeypatch.setattr(torch, "rand", lambda *_, **__: next(draws))
    thin = windows.thinned(0.8)
    assert thin.history.tolist() == [[1, 3, 5, -1, -1, -1]] and thin.length.tolist() == [3]
    assert targets_of(thin) == [(0, 3, (1,)), (0, 5, (1, 3)), (0, 6, (1, 3, 5))] and thin.fresh.tolist() == [3]
