"""First starts while a part of the cluster is down: a sentence now, a server when it is back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cluster import Cluster, wait_for
from hub import HubUser, LoginRefused, SpawnFailed

pytestmark = pytest.mark.disruptive


def assert_is_a_sentence(message: str) -> None:
    """What a student reads: about the cluster, without the inside of the program."""
    assert "Traceback" not in message
    assert "Exception" not in message
    assert "errno" not in message.lower()
    assert any(word in message.lower() for word in ("storage", "account", "home")), message


def start_again(student: HubUser) -> None:
    """The student tries again until it works, as students do."""

    def attempt() -> bool:
        try:
            student.start()
        except SpawnFailed as failure:
            raise AssertionError(str(failure)) from failure
        return True

    wait_for("the start after the outage", attempt, timeout=240, pause=5)
    assert student.run("print(6 * 7)").strip() == "42"


def test_first_start_without_accounts(cluster: Cluster, user: Callable[[str], HubUser]) -> None:
    """The accounts service is down when bob starts for the first time."""
    bob = user("bob")
    with cluster.without_service("accounts"):
        with pytest.raises(SpawnFailed) as failure:
            bob.start()
        assert_is_a_sentence(str(failure.value))
        assert bob.logged_in()
    start_again(bob)
    bob.stop()


def test_first_start_without_storage(cluster: Cluster, user: Callable[[str], HubUser]) -> None:
    """The NFS server is down when carol starts for the first time."""
    carol = user("carol")
    with cluster.without_storage():
        with pytest.raises(SpawnFailed) as failure:
            carol.start()
        assert_is_a_sentence(str(failure.value))
        assert carol.logged_in()
    start_again(carol)
    carol.stop()


def test_the_directory_is_down(cluster: Cluster, alice: HubUser, new_user: Callable[..., HubUser]) -> None:
    """Who wants to log in is told that the password was not checked; who works, works on."""
    with cluster.without_service("directory"):
        with pytest.raises(LoginRefused, match="does not answer, so your password was not checked"):
            new_user("bob").login()
        assert alice.run("print(6 * 7)").strip() == "42"
        assert alice.logged_in()
    wait_for("the next login", lambda: new_user("bob").login().logged_in(), timeout=60)
    alice.stop()
