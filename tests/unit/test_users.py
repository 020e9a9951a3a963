"""What playbooks/users.yml decides: who is told, locked and archived, and what it refuses."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

SPEC = importlib.util.spec_from_file_location(
    "users_filter", Path(__file__).parents[2] / "plugins/filter/users.py"
)
users = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(users)

SAID = {"alice": "present", "bob": "gone", "eve": "not allowed", "old": "gone", "tina": "present"}
SAID |= {f"student{number}": "present" for number in range(6)}
ACCOUNTS = [
    {"username": name, "account": name, "uid": 100000 + number, "locked": "2026-01-31" * (name == "old")}
    for number, name in enumerate(SAID)
]


def plan(said: dict[str, str] | None = SAID, **asked: Any) -> dict[str, Any]:
    """What there is to do."""
    return users.users_plan(ACCOUNTS, said, **asked)


def test_the_report_tells_them_apart_and_asks_for_nothing():
    found = plan()
    assert found["report"] == [
        "bob: not in the directory any more",
        "eve: in none of the groups that may use the hub",
        "old: locked since 2026-01-31, not in the directory any more",
        "11 accounts, 1 of them locked; 2 users are not in the directory any more, "
        "1 in none of the groups that may use the hub.",
    ]
    assert (found["lock"], found["unlock"], found["homes"], found["problems"]) == ([], [], [], [])


def test_all_are_those_who_left_and_the_locked_ones_again():
    """An interrupted run may have locked somebody and not archived the home."""
    found = plan(lock="all")
    assert found["lock"] == found["users"] == ["bob", "eve", "old"]
    assert found["homes"][0] == {"account": "bob", "uid": 100001, "archive": True, "delete": False}
    assert found["problems"] == []
    assert found["report"][0] == "bob: not in the directory any more → lock the account and archive the home"


@pytest.mark.parametrize("asked", ["bob,eve", " bob , eve,bob", ["bob", "eve"]])
def test_names_as_text_or_list(asked):
    assert plan(lock=asked)["lock"] == ["bob", "eve"]


def test_names_are_data():
    assert users.names_of(12345) == ["12345"]
    assert users.names_of(["a,b"]) == ["a,b"]
    assert users.names_of("Jo\u0308rg") == ["Jörg"]
    assert plan(lock=["all"])["problems"] == ["users_lock names all, who has no account."]


def test_a_home_is_removed_of_a_locked_account_only():
    assert plan(delete="old")["homes"] == [
        {"account": "old", "uid": 100003, "archive": False, "delete": True}
    ]
    assert plan(delete="bob", lock="bob")["homes"] == [
        {"account": "bob", "uid": 100001, "archive": True, "delete": True}
    ]
    assert plan(delete="old")["problems"] == plan(delete="bob", lock="bob")["problems"] == []
    assert "not locked" in plan(delete="bob")["problems"][0]
    assert "not locked" in plan(delete="old", unlock="old")["problems"][0]
    assert "still in the directory" in plan(delete="alice", lock="alice")["problems"][0]
    assert plan(delete="all")["problems"] == ["users_delete_homes names all, who has no account."]


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"lock": "mallory"}, "users_lock names mallory, who has no account."),
        ({"unlock": "mallory"}, "users_unlock names mallory, who has no account."),
        ({"lock": "bob", "unlock": "bob"}, "bob cannot be both locked and unlocked."),
    ],
)
def test_what_cannot_be_is_a_sentence(asked, sentence):
    assert plan(**asked)["problems"] == [sentence]


def test_a_third_gone_is_no_third_gone():
    """Accounts that are locked already do not count: over the years they would be more than a third."""
    said = SAID | {f"student{number}": "gone" for number in range(2)}
    assert "4 of 10 accounts in use look as if" in plan(said, lock="bob")["problems"][0]
    assert plan(said, lock="bob", limit=40)["problems"] == []
    assert plan(said)["problems"] == []
    assert len(plan(said)["report"]) == 6
    many = [{**account, "locked": "2026-01-31"} for account in ACCOUNTS[2:]] + ACCOUNTS[:2]
    said = dict.fromkeys(SAID, "gone") | {"alice": "present", "bob": "present"}
    assert users.users_plan(many, said, lock="alice")["problems"] == []


def test_without_the_directory():
    found = plan(None, lock="bob")
    assert (found["lock"], found["problems"]) == (["bob"], [])
    assert found["report"][0] == "bob: in use → lock the account and archive the home"
    assert found["report"][-1] == "11 accounts, 1 of them locked."
    assert "users_ask_directory" in plan(None, lock="all")["problems"][0]
    assert plan(None, delete="old")["problems"] == []


def test_users_with_servers():
    services = [
        {"Spec": {"Name": "a", "Labels": {"org.jupyterhub.user": "bob"}}},
        {"Spec": {"Name": "b", "Labels": {"org.jupyterhub.user": "a%C2%A0b"}}},
        {"Spec": {"Name": "c", "Labels": {"org.jupyterhub.user": "alice"}}},
        {"Spec": {"Name": "d"}},
    ]
    assert users.users_with_servers(services, ["bob", "a\u00a0b", "eve"]) == ["a%C2%A0b", "bob"]
    containers = [{"Labels": {"org.jupyterhub.user": "eve"}}, {"Labels": None}]
    assert users.users_with_servers(services + containers, ["bob", "eve"]) == ["bob", "eve"]
    assert users.users_with_servers([], ["bob"]) == []


def test_what_became_of_homes():
    homes = [
        {"account": "bob", "state": "archived", "archive": "bob-20261124T204811Z.tar.gz"},
        {"account": "eve", "state": "absent", "archive": ""},
    ]
    assert users.homes_report(homes, "/srv/archive") == [
        "bob: was archived, /srv/archive/bob-20261124T204811Z.tar.gz",
        "eve: has no home",
    ]
    homes[0]["archive"] = ""
    assert users.homes_report(homes, "/srv/archive", True)[0] == "bob: would be archived"
