"""Who gets in, and what those are told who do not."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
from cluster import Cluster
from hub import HubUser, LoginRefused, SpawnFailed, login_message
from inventory import ROOT
from rendering import Renderer, fill

# Students of tests/inventories/*/group_vars/all/odd_names.yml, of whom the hub makes users.
ODD_NAMES = ["o'brien", "Jörg", "a.b+c@example.org", "-rf", "root", "12345", "x" * 200]


@pytest.mark.smoke
def test_http_leads_to_https(cluster: Cluster) -> None:
    """The plain address redirects, and says nothing else."""
    plain = cluster.url.replace("https:", "http:", 1)
    answer = requests.get(f"{plain}/hub/login", allow_redirects=False, timeout=30)
    assert answer.status_code in (301, 302, 307, 308)
    assert answer.headers["Location"].startswith("https://")


@pytest.mark.smoke
def test_the_certificate_is_the_clusters_own(cluster: Cluster) -> None:
    """Without the cluster's CA the certificate is not trusted; with it, its names fit."""
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(f"{cluster.url}/hub/login", timeout=30)
    assert requests.get(f"{cluster.url}/hub/login", verify=cluster.ca, timeout=30).ok


@pytest.mark.smoke
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


@pytest.mark.smoke
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
        pytest.param("x" * 300, "alice-lab-password", id="300 characters"),
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


@pytest.mark.smoke
@pytest.mark.parametrize("name", ODD_NAMES, ids=lambda name: ascii(name)[:20])
def test_an_odd_name_logs_in(new_user: Callable[..., HubUser], name: str) -> None:
    """It is one name of a user of the hub, as the directory spells it but in lower case."""
    model = sign_in(new_user(name))
    assert (model["name"], model["groups"]) == (name.lower(), ["students"])
    assert not model["admin"]


@pytest.mark.smoke
def test_a_name_that_is_a_path_is_refused(new_user: Callable[..., HubUser]) -> None:
    """The password is right; the hub cannot have such a user, and says so."""
    with pytest.raises(LoginRefused, match="cannot be used here"):
        sign_in(new_user("../../etc"))


@pytest.mark.smoke
def test_root_gets_no_server(cluster: Cluster, new_user: Callable[..., HubUser]) -> None:
    """A student who is called like a system's account has none on the storage, and reads why."""
    root = new_user("root").login()
    with pytest.raises(SpawnFailed, match=r"system.s own"):
        root.spawn()
    assert cluster.notebook("root") is None
    assert cluster.accounts("GET", "/accounts/root")[0] == 404


@pytest.fixture
def obrien(new_user: Callable[..., HubUser]) -> Iterator[HubUser]:
    """A student with an apostrophe and a running server."""
    obrien = new_user("o'brien").login()
    # As the hub has it in its links: a server knows its own paths in that spelling only.
    obrien.name = quote(obrien.name)
    try:
        yield obrien.start()
    finally:
        obrien.stop()


def test_an_odd_name_has_a_home_of_its_own(cluster: Cluster, obrien: HubUser) -> None:
    """What `o'brien` saves lies in the home that the account has, under its UID."""
    status, account = cluster.accounts("GET", f"/accounts/{obrien.name}")
    assert (status, account["username"]) == (200, "o'brien")
    assert account["uid"] >= 100000
    word = uuid.uuid4().hex
    home = obrien.run(
        "import pathlib\n"
        f"pathlib.Path.home().joinpath('odd.txt').write_text({word!r})\n"
        "print(pathlib.Path.home())"
    )
    assert home.strip() == f"/home/{account['account']}"
    home = f"{cluster.storage_dir}/homes/{account['account']}"
    assert cluster.storage.run("cat", f"{home}/odd.txt") == word
    ids = {"uid": account["uid"], "gid": account["gid"]}
    assert cluster.storage.stat(f"{home}/odd.txt") == {**ids, "mode": "660"}
    assert cluster.storage.stat(home) == {**ids, "mode": "700"}


def test_the_edge_understands_what_no_cluster_here_has(cluster: Cluster, tmp_path: Path) -> None:
    """Certificates by ACME, from an authority of the site's own: nobody to ask, but the file can be read."""
    renderer = Renderer("tests/inventories/variants", fill(tmp_path))
    text = renderer.render(ROOT / "roles/edge/templates/Caddyfile.j2", renderer.hosts[0])
    assert "acme_ca " in text
    node = cluster.node_of(cluster.service("edge"))
    container = node.run("docker", "ps", "--quiet", "--filter", "name=edge").split()[0]
    command = ("caddy", "adapt", "--adapter", "caddyfile", "--config", "-")
    read = node.run("docker", "exec", "--interactive", container, *command, stdin=text)
    issuer = json.loads(read)["apps"]["tls"]["automation"]["policies"][0]["issuers"][0]
    assert issuer["module"] == "acme"
    assert issuer["ca"] in text


def test_the_edge_tells_no_more_than_needed(cluster: Cluster) -> None:
    """The hub's internal addresses are not reachable from outside."""
    for path in ("/hub/metrics", "/api/routes"):
        assert not requests.get(f"{cluster.url}{path}", verify=cluster.ca, timeout=30).ok


def sign_in(user: HubUser) -> dict[str, Any]:
    """Log in by the form, and return the user that the session is, as the hub's API shows it.

    `HubUser.login` goes on with the name in a path, in the spelling of the login; the hub's may be another.

    Raises:
        LoginRefused: With the page's message.
    """
    user.get("/hub/login").raise_for_status()
    form = {"username": user.name, "password": user.password, "_xsrf": xsrf(user)}
    answer = user.session.post(f"{user.url}/hub/login", data=form, timeout=60, allow_redirects=False)
    if answer.status_code != 302:
        raise LoginRefused(login_message(answer.text) or answer.text)
    user.get("/hub/home").raise_for_status()
    answer = user.session.get(f"{user.url}/hub/api/user", headers={"X-XSRFToken": xsrf(user)}, timeout=60)
    answer.raise_for_status()
    return answer.json()


def xsrf(user: HubUser) -> str:
    """The session's token against forged requests."""
    return user.session.cookies.get("_xsrf", path="/hub/")
