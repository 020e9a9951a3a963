"""Locked accounts: what the service says of them, and how they are locked and unlocked."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import accounts
import lock
import pytest
from aiohttp.test_utils import TestClient, TestServer

pytestmark = pytest.mark.root
TOKEN = "a-token"
NAMES = ["alice", "Jörg", "-rf"]


class Site:
    """A storage and the accounts service on it."""

    def __init__(self, path: Path) -> None:
        """Makes the storage."""
        for directory in ("homes", "state"):
            (path / directory).mkdir()
        for file in ("homes/.campus-storage", "state/passwd", "state/group"):
            (path / file).touch()
        self.locks = path / "state/locked"
        self.settings = accounts.Settings(
            homes_dir=str(path / "homes"), state_dir=str(path / "state"), system_files=""
        )
        self.client: TestClient

    def run(self, check: bool = False, **asked: list[str]) -> dict[str, Any]:
        """Locks and unlocks as the playbook does."""
        return lock.run(asked, self.settings, check=check)

    async def put(self, username: str) -> tuple[int, dict[str, Any]]:
        """Asks for an account, as a start does."""
        async with self.client.put(f"/accounts/{username}", json={"groups": ["students"]}) as answer:
            return answer.status, await answer.json()


@pytest.fixture
async def site(tmp_path: Path):
    """A storage with three accounts."""
    made = Site(tmp_path)
    service = accounts.Service(made.settings, TOKEN)
    async with contextlib.AsyncExitStack() as stack:
        client = TestClient(TestServer(service.app()), headers={"Authorization": f"Bearer {TOKEN}"})
        made.client = await stack.enter_async_context(client)
        for name in NAMES:
            assert (await made.put(name))[0] == 201
        yield made


async def test_a_locked_account_is_refused_at_once_and_the_others_are_not(site: Site) -> None:
    """By the service that runs already."""
    assert site.run(lock=["alice"])["changed"] == ["alice"]
    status, answer = await site.put("alice")
    assert status == 403
    assert answer["reason"].startswith("The account alice is locked since 2")
    assert answer["reason"].endswith("an administrator can unlock it.")
    assert [(await site.put(name))[0] for name in NAMES[1:]] == [200, 200]
    answer = await (await site.client.get("/accounts")).json()
    assert [one["locked"] for one in answer["accounts"]] == [True, False, False]
    assert (await (await site.client.get("/accounts/alice")).json())["locked"] is True


async def test_an_unlocked_account_is_the_one_that_it_was(site: Site) -> None:
    before = await site.put("alice")
    site.run(lock=["alice"])
    assert site.run(unlock=["alice"])["changed"] == ["alice"]
    assert await site.put("alice") == before


async def test_a_new_group_does_not_open_a_locked_account(site: Site) -> None:
    """The request that has something to write is another way through the service."""
    site.run(lock=["alice"])
    async with site.client.put("/accounts/alice", json={"groups": ["students", "course-1"]}) as answer:
        assert answer.status == 403
    assert "course-1" not in Path(site.settings.state_dir, "group").read_text()


async def test_a_second_run_changes_nothing(site: Site) -> None:
    first = site.run(lock=["alice"])
    stamp = (site.locks / "alice").stat()
    assert site.run(lock=["alice", "alice"]) == {**first, "changed": []}
    assert (site.locks / "alice").stat() == stamp
    assert site.run(unlock=["Jörg"])["changed"] == []


async def test_check_only_says_what_would_change(site: Site) -> None:
    assert site.run(check=True, lock=NAMES)["changed"] == NAMES
    assert not site.locks.exists()
    site.run(lock=NAMES)
    assert site.run(check=True, unlock=["-rf"])["changed"] == ["-rf"]
    assert [one["locked"] != "" for one in site.run()["accounts"]] == [True, True, True]


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"lock": ["alice", "mallory"]}, "no account of the name 'mallory'"),
        ({"unlock": ["mallory"]}, "no account of the name 'mallory'"),
        ({"lock": ["alice"], "unlock": ["alice"]}, "both locked and unlocked"),
        ({"lock": ["alice", ""]}, "empty user name"),
        ({"lock": ["alice", 5]}, "must be text"),
    ],
)
async def test_what_cannot_be_changes_nothing(site: Site, asked: dict[str, list[str]], sentence: str) -> None:
    with pytest.raises(accounts.RefusedError, match=sentence):
        site.run(**asked)
    assert not site.locks.exists()


async def test_a_name_in_another_form_of_unicode_is_the_same(site: Site) -> None:
    assert site.run(lock=["Jo\u0308rg"])["changed"] == ["Jörg"]


async def test_as_it_is_run(site: Site, root: Path) -> None:
    """JSON in, JSON out; a sentence and nothing else when it cannot be done."""
    environment = {**os.environ, "ACCOUNTS_STATE_DIR": site.settings.state_dir}
    command = [sys.executable, str(root / "files/lock.py")]

    def run(asked: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, input=json.dumps(asked), env=environment, capture_output=True, text=True, check=False
        )

    done = run({"lock": ["-rf"], "unlock": []})
    assert json.loads(done.stdout)["changed"] == ["-rf"]
    failed = run({"lock": ["mallory"]})
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr == "There is no account of the name 'mallory'.\n"
