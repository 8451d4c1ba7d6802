"""The board of a standalone node with workers, and the line over which they see it."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from limiter_node.control.board import (
    Appointment,
    Board,
    Line,
    Opened,
    Post,
    Shown,
    Started,
    Task,
    decode_of_supervisor,
    decode_of_worker,
    encode,
)


def founded(*workers: str) -> Board:
    board = Board(len(workers))
    for worker in workers:
        board.post(worker, f"nodes/{worker}", "{}")
    return board


def values(board: Board) -> dict[str, str | None]:
    return {notice.key: notice.value for notice in board.notices}


def test_nothing_is_shown_before_every_worker_is_there() -> None:
    board = Board(2)
    board.post("n.1", "nodes/n.1", "a")
    assert board.notices == []
    board.post("n.2", "nodes/n.2", "b")
    assert values(board) == {"nodes/n.1": "a", "nodes/n.2": "b", "leader": "n.1"}
    assert sorted({notice.revision for notice in board.notices}) == [1, 2, 3]


def test_who_is_there_longest_leads_and_only_the_leader_decides_of_backends() -> None:
    board = founded("n.1", "n.2", "n.3")
    board.post("n.2", "multipliers/orders", "no")
    board.post("n.1", "multipliers/orders", "0.5")
    assert values(board)["multipliers/orders"] == "0.5"
    board.lose("n.1")
    assert values(board)["leader"] == "n.2"
    board.post("n.1", "nodes/n.1", "{}")  # its next life does not lead
    board.post("n.1", "multipliers/orders", "no")
    board.post("n.2", "multipliers/orders", "0.4")
    assert (values(board)["leader"], values(board)["multipliers/orders"]) == ("n.2", "0.4")


def test_a_worker_that_dies_stays_a_member_unless_it_does_not_come_back() -> None:
    board = founded("n.1", "n.2")
    for worker in ("n.1", "n.2"):
        board.lose(worker)
    assert values(board) == {"nodes/n.1": "{}", "nodes/n.2": "{}", "leader": None}
    board.post("n.2", "nodes/n.2", "new")
    board.lapse("n.1")
    board.lapse("n.2")
    assert values(board) == {"nodes/n.1": None, "nodes/n.2": "new", "leader": "n.2"}


def test_a_worker_that_leaves_leads_no_more() -> None:
    board = founded("n.1", "n.2")
    board.post("n.1", "nodes/n.1", None)
    assert values(board) == {"nodes/n.1": None, "nodes/n.2": "{}", "leader": "n.2"}


@pytest.mark.parametrize("message", [Task({"workers": 2, "zone": None}, 1, "run"), Shown(founded("n.1").notices)])
def test_what_a_supervisor_says_is_one_line(message: Task | Shown) -> None:
    assert encode(message).endswith(b"\n")
    assert encode(message).count(b"\n") == 1
    assert decode_of_supervisor(encode(message)) == message


@pytest.mark.parametrize("message", [Started("127.0.0.1:1"), Opened(), Post("leader", None), Post("a", 'b\n"')])
def test_what_a_worker_says_is_one_line(message: Started | Opened | Post) -> None:
    assert encode(message).count(b"\n") == 1
    assert decode_of_worker(encode(message)) == message


class Heard:
    """Changes as they came."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, bytes | None]] = []
        self.revisions: list[int] = []

    def changed(self, key: str, value: bytes | None, revision: int) -> None:
        self.changes.append((key, value))

    def synced(self, revision: int) -> None:
        self.revisions.append(revision)


Ends = tuple[socket.socket, Line]


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    """The supervisor's end and the worker's."""
    ours, theirs = socket.socketpair()
    line = await Line.over(theirs)
    yield ours, line
    ours.close()
    await line.close()


async def test_a_worker_hears_each_change_once_and_the_end(ends: Ends) -> None:
    ours, line = ends
    heard, board = Heard(), founded("n.1", "n.2")
    ours.sendall(encode(Shown(board.notices)))
    board.lose("n.1")
    ours.sendall(encode(Shown(board.notices)))
    ours.close()
    await asyncio.wait_for(line.follow(heard), 5)
    assert sorted(heard.changes[:3]) == [("leader", b"n.1"), ("nodes/n.1", b"{}"), ("nodes/n.2", b"{}")]
    assert heard.changes[3:] == [("leader", b"n.2")]
    assert heard.revisions == [3, 4]


async def test_a_worker_takes_down_what_it_has_posted_when_it_leaves(ends: Ends) -> None:
    ours, line = ends
    line.register("nodes/n.1", b"here")
    line.register("nodes/n.1", b"leaving")
    await line.leave()
    await line.leave()
    said = [decode_of_worker(told) for told in ours.recv(4096).splitlines()]
    assert said == [Post("nodes/n.1", "here"), Post("nodes/n.1", "leaving"), Post("nodes/n.1", None)]


async def test_a_worker_leads_while_the_board_says_so(ends: Ends) -> None:
    ours, line = ends
    appointment = Appointment(line, "n.1")
    assert not appointment.is_leader
    appointment.changed(b"n.1", 7)
    assert (appointment.is_leader, appointment.leader, appointment.term) == (True, "n.1", 7)
    assert await appointment.write("multipliers/orders", b"{}", 0)
    assert decode_of_worker(ours.recv(4096)) == Post("multipliers/orders", "{}")
    appointment.changed(b"n.2", 8)
    assert (appointment.is_leader, appointment.leader, appointment.term) == (False, "n.2", 0)
    appointment.changed(None, 9)
    assert (appointment.is_leader, appointment.leader) == (False, None)
