"""Starts and stops under stress: always exactly one server, always the one of the last start.

The servers are a few lines of Python that answer with a value handed to them at their start.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from cluster import Cluster, wait_for
from hub import STOP_TIMEOUT, HubUser
from stub import Student

pytestmark = pytest.mark.disruptive

NAMES = ["alice", "bob", "carol", "tina", "ada"]
STARTS = 50
CANCELS = 20


@pytest.fixture(scope="module")
def students(cluster: Cluster, user: Callable[[str], HubUser]) -> Iterator[list[Student]]:
    """Five users, whose rounds run side by side."""
    students = [Student(cluster, user(name)) for name in NAMES]
    for student in students:
        student.hub.stop()
    yield students
    for student in students:
        student.hub.stop()


def side_by_side(students: list[Student], rounds: int, work: Callable[[Student], None]) -> None:
    """Do the work in so many rounds in all, every student one after the other, all students at once."""

    def go(student: Student) -> None:
        for _ in range(rounds // len(students)):
            work(student)

    with ThreadPoolExecutor(len(students)) as pool:
        for done in [pool.submit(go, student) for student in students]:
            done.result()


@pytest.mark.two_nodes
def test_stop_and_start_at_once(students: list[Student]) -> None:
    """A start right after a stop gives the new server, never the dying one."""

    def once(student: Student) -> None:
        student.hub.request_stop()
        student.start()
        student.assert_one_server()
        assert len(student.containers()) == 1

    side_by_side(students, STARTS, once)


def test_double_click_on_start(students: list[Student]) -> None:
    """Two clicks at the same moment start one server."""

    def once(student: Student) -> None:
        student.hub.stop()
        value = uuid.uuid4().hex
        with ThreadPoolExecutor(2) as pool:
            clicks = [pool.submit(student.request_start, value) for _ in range(2)]
        # 400: the second click comes when the server is ready
        assert {click.result().status_code for click in clicks} <= {201, 202, 400}
        wait_for("the server", lambda: (student.hub.server or {}).get("ready"), timeout=120, pause=0.2)
        student.value = value
        student.assert_one_server()

    side_by_side(students, STARTS, once)


@pytest.mark.two_nodes
def test_start_and_cancel(students: list[Student]) -> None:
    """A start that is cancelled at any moment leaves nothing."""
    moments = random.Random(7)  # noqa: S311 - the same moments in every run

    def once(student: Student) -> None:
        student.hub.stop()
        student.request_start(uuid.uuid4().hex)
        time.sleep(moments.uniform(0, 3))
        student.hub.request_stop()
        wait_for("the end", lambda: student.hub.server is None, timeout=STOP_TIMEOUT, pause=0.2)
        wait_for("no service", lambda: student.services() == [], timeout=30)

    side_by_side(students, CANCELS, once)
    for student in students:
        student.start()
        student.assert_one_server()


@pytest.mark.two_nodes
def test_named_servers_side_by_side(students: list[Student]) -> None:
    """A second server has a service of its own, and its end is not the first one's."""
    student, value = students[0], uuid.uuid4().hex
    student.hub.stop()
    student.start()
    path = f"/hub/api/users/{student.hub.name}/servers/second"
    student.hub.api("POST", path, json={"user_options": student.options(value)}).raise_for_status()
    servers = lambda: student.hub.model()["servers"]  # noqa: E731
    wait_for("the second server", lambda: servers()["second"]["ready"], timeout=120)
    assert student.hub.api("GET", f"/user/{student.hub.name}/second/value").text == value
    assert student.hub.api("GET", f"/user/{student.hub.name}/value").text == student.value
    assert len(student.services()) == 2
    student.hub.api("DELETE", path, json={"remove": True}, timeout=STOP_TIMEOUT).raise_for_status()
    wait_for("its end", lambda: "second" not in servers(), timeout=STOP_TIMEOUT)
    student.assert_one_server()


@pytest.mark.two_nodes
@pytest.mark.parametrize("pause", [0.3, 1.5, 3.0])
def test_a_hub_that_crashes_in_a_start_finds_its_way(students: list[Student], pause: float) -> None:
    """The hub is killed some time after the click; the next start gives exactly one server, the new one."""
    student = students[0]
    student.hub.stop()
    student.request_start(uuid.uuid4().hex, delay=4)
    time.sleep(pause)
    student.kill_hub()
    wait_for("no start under way", lambda: not (student.hub.server or {}).get("pending"), timeout=120)
    student.hub.stop()
    student.start()
    student.assert_one_server()


@pytest.mark.two_nodes
def test_a_hub_that_crashes_in_a_stop_finds_its_way(students: list[Student]) -> None:
    """The hub is killed while a server takes its time to end; the next start gives exactly one server."""
    student = students[0]
    student.hub.stop()
    student.start(deaf=True)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(student.hub.request_stop)
        time.sleep(2)
        student.kill_hub()
    student.hub.stop()
    student.start()
    student.assert_one_server()


@pytest.mark.two_nodes
def test_no_service_and_no_volume_is_left_over(students: list[Student]) -> None:
    """After all that: one volume per mount and node at most, and no service without a server."""
    for student in students:
        student.hub.stop()
        assert student.services() == student.containers() == []
        for node, volumes in student.volumes().items():
            assert len(volumes) <= 1, f"{student.hub.name} on {node}: {volumes}"
