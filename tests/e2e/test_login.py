"""Who gets in, and what those are told who do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import requests
from cluster import Cluster
from hub import HubUser, LoginRefused


@pytest.mark.smoke
def test_http_leads_to_https(cluster: Cluster) -> None:
    """The plain address redirects, and says nothing else."""
    plain = cluster.url.replace("https:", "http:", 1)
    answer = requests.get(f"{plain}/hub/login", allow_redirects=False, timeout=30)
    assert answer.status_code in (301, 302, 307, 308)
    assert answer.headers["Location"].startswith("https://")


def test_the_certificate_is_the_clusters_own(cluster: Cluster) -> None:
    """Without the cluster's CA the certificate is not trusted; with it, its names fit."""
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(f"{cluster.url}/hub/login", timeout=30)
    assert requests.get(f"{cluster.url}/hub/login", verify=cluster.ca, timeout=30).ok


def test_alice_logs_in(user: Callable[[str], HubUser]) -> None:
    """A student gets a session, in the group that the directory says."""
    alice = user("alice")
    assert alice.logged_in()
    model = alice.model()
    assert "students" in model["groups"]
    assert not model["admin"]


def test_ada_is_admin(user: Callable[[str], HubUser]) -> None:
    """Membership of hub-admins makes an administrator, who may see the others."""
    ada = user("ada")
    assert ada.model()["admin"]
    assert ada.api("GET", "/hub/api/users/alice").ok


def test_students_do_not_see_each_other(user: Callable[[str], HubUser]) -> None:
    """An ordinary user has no access to another's part of the hub."""
    assert user("bob").api("GET", "/hub/api/users/alice").status_code in (403, 404)


@pytest.mark.parametrize(
    ("name", "password"),
    [
        pytest.param("alice", "not-her-password", id="wrong password"),
        pytest.param("alice", "", id="empty password"),
        pytest.param("mallory", "mallory-lab-password", id="unknown user"),
        pytest.param("eve", "eve-lab-password", id="in none of the groups"),
        pytest.param("*", "alice-lab-password", id="a pattern of names"),
        pytest.param("alice)(uid=*", "alice-lab-password", id="a filter of LDAP"),
        pytest.param("alice,ou=people", "alice-lab-password", id="a part of a DN"),
    ],
)
def test_others_are_refused_with_a_message(
    new_user: Callable[..., HubUser], name: str, password: str
) -> None:
    """The login page comes back with a sentence, and there is no session."""
    stranger = new_user(name, password)
    with pytest.raises(LoginRefused) as refusal:
        stranger.login()
    message = str(refusal.value)
    assert 10 < len(message) < 200, message
    assert "Traceback" not in message
    assert not stranger.logged_in()


def test_the_edge_tells_no_more_than_needed(cluster: Cluster) -> None:
    """The hub's internal addresses are not reachable from outside."""
    for path in ("/hub/metrics", "/api/routes"):
        assert not requests.get(f"{cluster.url}{path}", verify=cluster.ca, timeout=30).ok
