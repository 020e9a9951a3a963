"""Names from LDAP are data: each gives an account of its own or a refusal with a reason."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest
from cluster import Cluster

HOSTILE = [
    "o'brien",
    "O'Brien",
    "obrien",
    "Jörg",
    "jorg",
    "a.b+c@example.org",
    "a.b",
    "x" * 300,
    "x" * 299,
    "../../etc",
    "..",
    "-rf",
    "root",
    "nobody",
    "12345",
    "0",
    "$(reboot)",
    "a b",
    "a:b",
    "a%2fb",
    "a/b",
    "line\nbreak",
    "new\u200bwidth",
]


@pytest.fixture(scope="module")
def answers(cluster: Cluster) -> dict[str, tuple[int, object]]:
    """What the accounts service says to each hostile name, as a student."""
    body = {"groups": ["students"]}
    paths = [f"/accounts/{quote(name, safe='')}" for name in HOSTILE]
    answers = cluster.accounts_all([{"method": "PUT", "path": path, "body": body} for path in paths])
    return dict(zip(HOSTILE, answers, strict=True))


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:20])
def test_a_name_gives_an_account_or_a_reason(
    cluster: Cluster, answers: dict[str, tuple[int, object]], name: str
) -> None:
    """Never a system's account, never a path outside the homes, never a server error."""
    status, answer = answers[name]
    assert status in (200, 201, 400), answer
    if status == 400:
        assert len(str(answer)) > 10, "a refusal has a reason"
        return
    assert answer["username"] == name
    assert answer["uid"] >= 100000
    assert answer["gid"] >= 1000
    parent, _, last = answer["home"].rpartition("/")
    assert parent == "/homes"
    assert last == answer["account"]
    assert last not in ("", ".", "..")
    assert len(last.encode()) <= 255
    home = cluster.storage.stat(f"{cluster.storage_dir}{answer['home']}")
    assert home == {"uid": answer["uid"], "gid": answer["gid"], "mode": "700"}


def test_two_names_never_share(answers: dict[str, tuple[int, object]]) -> None:
    """Different names have different accounts, UIDs and homes."""
    accounts = [answer for status, answer in answers.values() if status != 400]
    assert len(accounts) > 5
    for key in ("account", "uid", "home"):
        assert len({account[key] for account in accounts}) == len(accounts), key


def test_many_requests_make_one_account(cluster: Cluster) -> None:
    """A class that logs in at once, through as many tabs as it likes."""
    with ThreadPoolExecutor(6) as pool:
        body = {"groups": ["students"]}
        asked = [pool.submit(cluster.accounts, "PUT", "/accounts/crowd", body) for _ in range(12)]
        given = [future.result() for future in asked]
    assert {status for status, _ in given} <= {200, 201}
    assert [status for status, _ in given].count(201) <= 1
    assert len({account["uid"] for _, account in given}) == 1


def test_a_uid_belongs_to_one_account(cluster: Cluster) -> None:
    """A directory that gives carol's number to another is told so."""
    numbers = {"groups": ["students"], "uid": 5003, "gid": 5003}
    assert cluster.accounts("PUT", "/accounts/carol", numbers)[0] in (200, 201)
    status, reason = cluster.accounts("PUT", "/accounts/carola", numbers)
    assert status == 409, reason


def test_an_account_is_not_renumbered(cluster: Cluster) -> None:
    """A changed number in the directory is a conflict, not a silent loss of the home."""
    cluster.accounts("PUT", "/accounts/crowd", {"groups": ["students"]})
    assert cluster.accounts("PUT", "/accounts/crowd", {"groups": ["students"], "uid": 7777})[0] == 409
