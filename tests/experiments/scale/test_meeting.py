"""Processes that find each other, or learn at once why they cannot."""

import socket
import threading

import pytest

from experiments.common.errors import UserError
from experiments.scale import meeting
from experiments.scale.meeting import Place, meet


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def all_meet(*places, seconds=20.0):
    """What each place is told: nothing if all may begin."""
    told = [None] * len(places)

    def come(n, place):
        try:
            meet(place, seconds=seconds)
            told[n] = ""
        except UserError as error:
            told[n] = str(error)

    threads = [threading.Thread(target=come, args=one) for one in enumerate(places)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return told


def places(*numbers, processes=None):
    port = free_port()
    return [Place("localhost", port, processes or len(numbers), n) for n in numbers]


@pytest.mark.parametrize("numbers", [(0, 1), (2, 0, 1, 3), (0,)])
def test_all_may_begin_when_all_have_come(numbers):
    here = places(*numbers)
    assert all_meet(*here) == [""] * len(numbers)
    assert all_meet(*here) == [""] * len(numbers)  # the port is free again


@pytest.mark.parametrize(
    ("numbers", "got"), [((0, 1, 1), "got 1 twice"), ((0, 0), "got 0 twice")]
)
def test_a_process_that_comes_twice_stops_all(numbers, got):
    told = all_meet(*places(*numbers, processes=4))
    assert all("`--process-id` must differ" in one and got in one for one in told)


def test_another_number_of_processes_stops_all():
    here = places(0, 1)
    told = all_meet(here[0], here[1]._replace(processes=3))
    assert len(set(told)) == 1
    assert "got 2 in process 0 and 3 in process 1" in told[0]


def test_all_learn_who_did_not_come():
    told = all_meet(*places(0, 1, processes=4), seconds=1.0)
    assert len(set(told)) == 1
    assert "within 1 s, but process 2, 3 did not" in told[0]
    (told,) = all_meet(*places(1, processes=2), seconds=0.5)
    assert "Process 0 must answer at localhost" in told and "refused" in told


def test_a_port_in_use_is_told_at_once():
    (here,) = places(0, processes=2)
    with socket.create_server(("127.0.0.1", here.port)) as other:
        threading.Thread(target=lambda: other.accept()[0].close()).start()
        (told,) = all_meet(here)
    assert f"must name a free port on the machine of process 0, got {here.host}" in told
    assert "Address already in use" in told


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\n\r\n", b"\xff\n", b"{}\n", b"5\n"]
)
def test_a_stranger_is_not_counted(said):
    first, second = places(0, 1)
    came = threading.Thread(target=all_meet, args=(first,))
    came.start()
    while True:
        try:
            with socket.create_connection((first.host, first.port)) as stranger:
                stranger.sendall(said)
            break
        except ConnectionRefusedError:
            continue
    assert all_meet(second) == [""]
    came.join(30)


@pytest.mark.parametrize("text", ["h", "h:", ":1", "h:0", "h:70000", "h:x", "h:-1"])
def test_an_address_is_host_and_port(text):
    with pytest.raises(UserError, match="must be HOST:PORT of process 0, got"):
        meeting.place(text, processes=2, number=0)


def test_an_address_of_version_six():
    found = meeting.place("[::1]:80", processes=2, number=1)
    assert found == Place("::1", 80, 2, 1)
