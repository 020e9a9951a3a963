"""Moving an account to another UID, interrupted wherever it can be."""

from __future__ import annotations

import argparse
import fcntl
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accounts
import pytest
import renumber
import yaml
from ansible.template import trust_as_template
from inventory import ROOT, Inventory
from spawner import LABEL, NfsSwarmSpawner

pytestmark = pytest.mark.root
OLD, NEW, OTHER, GROUP = 100000, 5003, 100001, 20001


class Interrupted(Exception):  # noqa: N818 - what a kill would be
    """The process ended here."""


class Site:
    """A storage with two accounts, files of both, and an exchange."""

    def __init__(self, path: Path) -> None:
        """Makes it."""
        self.homes, self.state, self.exchange = path / "homes", path / "state", path / "exchange"
        for directory in (self.homes, self.state, self.exchange):
            directory.mkdir()
        (self.homes / ".campus-storage").touch()
        self.group.write_text(
            f"students:x:{GROUP}:\nalice:x:{OLD}:\nbob:x:{OTHER}:\nstudents:x:{GROUP}:alice\n"
        )
        self.passwd.write_text("".join(account.line() for account in self.before))
        self.settings = accounts.Settings(
            homes_dir=str(self.homes), state_dir=str(self.state), system_files=""
        )
        self.store = accounts.Store(self.settings)
        self.make_files()

    before = (
        accounts.Account("alice", "alice", OLD, OLD),
        accounts.Account("bob", "bob", OTHER, OTHER),
    )

    @property
    def passwd(self) -> Path:
        """The accounts."""
        return self.state / "passwd"

    @property
    def group(self) -> Path:
        """The groups."""
        return self.state / "group"

    def make_files(self) -> None:
        """Files of alice and bob, here and there, and links between them."""
        self.make("homes/alice", OLD, OLD, directory=True)
        self.make("homes/alice/deep/er", OLD, OLD, directory=True)
        self.make("homes/alice/deep/er/file", OLD, OLD)
        self.make("homes/alice/shared", OLD, GROUP)
        self.make("homes/alice/a teacher's", OTHER, OLD)
        self.make("homes/alice/bob's own", OTHER, OTHER)
        self.make("homes/bob", OTHER, OTHER, directory=True)
        self.make("homes/bob/diary", OTHER, OTHER)
        self.make("homes/bob/strange", OLD, OTHER)
        self.make("exchange/submitted", OLD, GROUP, directory=True)
        self.make("exchange/submitted/work", OLD, OLD)
        self.make("exchange/bob's", OTHER, GROUP)
        os.link(self.homes / "bob/diary", self.homes / "alice/hard link")
        os.link(self.homes / "alice/shared", self.exchange / "alice's hard link")
        (self.homes / "alice/symlink").symlink_to(self.homes / "bob")
        os.lchown(self.homes / "alice/symlink", OLD, OLD)

    def make(self, name: str, uid: int, gid: int, *, directory: bool = False) -> None:
        """Make a file or directory of somebody."""
        path = self.homes.parent / name
        if directory:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.write_text(name)
        os.chown(path, uid, gid)
        if name.endswith("deep/er"):
            os.chown(path.parent, uid, gid)

    def step(
        self, step: str, uid: int = NEW, gid: int | None = None, user: str = "alice", settle: float = 0
    ) -> dict[str, Any]:
        """Run a step, as the command line does."""
        asked = argparse.Namespace(
            step=step, username=user, uid=uid, gid=gid, also=[self.exchange], settle=settle
        )
        return renumber.run(asked, self.settings)

    def write(self, **asked: Any) -> accounts.Account | accounts.RefusedError:
        """The answer to somebody's first login, by a service that is there already."""
        return self.store.write([accounts.Request("carol", **asked)])[0]

    def appear(self, uid: int, gid: int) -> None:
        """Give carol an account without the service, as an editor does."""
        with self.passwd.open("a") as file:
            file.write(accounts.Account("carol", "carol", uid, gid).line())

    def owners(self) -> dict[str, tuple[int, int]]:
        """Owner and group of everything by name."""
        root = self.homes.parent
        paths = [*self.homes.rglob("*"), *self.exchange.rglob("*")]
        return {
            str(path.relative_to(root)): (path.lstat().st_uid, path.lstat().st_gid) for path in sorted(paths)
        }

    def index(self) -> accounts.Index:
        """The files as the service reads them."""
        return accounts.Store(self.settings).index()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A storage."""
    return Site(tmp_path)


def expected(before: dict[str, tuple[int, int]], gid: int = NEW) -> dict[str, tuple[int, int]]:
    """What the owners have to be afterwards: a swap of numbers, but not in bob's home."""
    return {
        name: pair
        if name.startswith("homes/bob")
        else (NEW if pair[0] == OLD else pair[0], gid if pair[1] == OLD else pair[1])
        for name, pair in before.items()
    }


def test_exactly_that_users_files_change(site: Site) -> None:
    before = site.owners()
    plan = site.step("plan")
    assert plan["pending"]
    assert site.owners() == before
    assert site.step("begin")["files"] == 0
    assert site.owners() == before
    assert site.step("finish")["files"] == plan["files"] > 0
    after = site.owners()
    assert after == expected(before)
    assert after["homes/alice/hard link"] == (OTHER, OTHER)
    account = site.index().by_username["alice"]
    assert (account.uid, account.gid) == (NEW, NEW)
    assert "students" in site.index().groups_of(account)
    assert site.index().private == {"alice", "bob"}


def test_a_second_run_has_nothing_to_do(site: Site) -> None:
    site.step("begin")
    site.step("finish")
    passwd, group = site.passwd.read_text(), site.group.read_text()
    for step in ("plan", "begin", "finish"):
        assert site.step(step) == {
            "username": "alice",
            "account": "alice",
            "pending": False,
            "old": [NEW, NEW],
            "new": [NEW, NEW],
            "files": 0,
        }
    assert (site.passwd.read_text(), site.group.read_text()) == (passwd, group)


def test_the_account_waits_meanwhile(site: Site) -> None:
    """The service refuses it with a sentence, and nobody else."""
    site.step("begin")
    store = accounts.Store(site.settings)
    with pytest.raises(accounts.RefusedError, match="being moved to another UID"):
        store.satisfied(store.index(), accounts.Request("alice"))
    assert store.satisfied(store.index(), accounts.Request("bob"))
    site.step("finish")
    assert store.satisfied(store.index(), accounts.Request("alice", uid=NEW, gid=NEW))


def test_an_old_number_is_never_given_out_again(site: Site) -> None:
    site.step("begin")
    site.step("finish")
    index = site.index()
    assert index.new_uid() not in (OLD, OTHER)
    with pytest.raises(accounts.RefusedError, match="was an account's once"):
        index.check_free("carol", OLD, OLD)
    with pytest.raises(accounts.RefusedError, match="was an account's once"):
        site.step("plan", uid=OLD, user="bob")


def test_numbers_of_a_move_are_not_given_out(site: Site) -> None:
    """Neither as a UID nor as a GID, and again if a move is taken back."""
    site.step("begin", uid=100002, gid=20002)
    account, created = site.write(groups=("course-1",))
    assert (account.uid, created) == (100003, True)
    assert site.index().groups["teachers"].gid == 20003
    assert site.index().groups["course-1"].gid == 20004
    (site.state / "renumber/alice").unlink()
    assert site.store.write([accounts.Request("dave", uid=100002)])[0][0].uid == 100002


@pytest.mark.parametrize(("uid", "gid"), [(NEW, None), (NEW, 7000), (7000, NEW)])
def test_numbers_of_a_move_are_not_the_directorys(site: Site, uid: int, gid: int | None) -> None:
    site.step("begin")
    passwd = site.passwd.read_text()
    refused = site.write(uid=uid, gid=gid)
    assert refused.status == 409
    assert f"account alice is being moved to UID {NEW}" in refused.reason
    with pytest.raises(accounts.RefusedError, match="account alice is being moved"):
        site.step("begin", uid=uid, gid=gid, user="bob")
    assert site.passwd.read_text() == passwd
    site.step("finish")
    assert site.index().by_uid[NEW].account == "alice"


def test_a_shared_group_of_a_move_may_be_shared(site: Site) -> None:
    site.step("begin", gid=7000)
    assert site.write(uid=7001, gid=7000)[0].gid == 7000
    site.step("finish", gid=7000)
    assert {one.gid for one in site.index().by_username.values()} == {OTHER, 7000}


def test_a_move_begins_when_nobody_writes(site: Site) -> None:
    """Who writes has looked for journals already, and may be giving out that very number."""
    with (site.state / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(accounts.RefusedError, match="Another process is writing"):
            site.step("begin")
    assert not (site.state / "renumber").exists()


def test_a_move_to_numbers_that_somebody_got_meanwhile_changes_nothing(site: Site) -> None:
    before = site.owners()
    site.step("begin")
    site.appear(NEW, NEW)
    files = (site.passwd.read_text(), site.group.read_text())
    with pytest.raises(accounts.RefusedError, match=f"UID {NEW} belongs to the account carol"):
        site.step("finish")
    assert site.owners() == before
    assert (site.passwd.read_text(), site.group.read_text()) == files


@pytest.mark.parametrize(("uid", "gid"), [(NEW, NEW), (7000, NEW)])
def test_numbers_are_looked_at_again_before_the_account_changes(
    site: Site, monkeypatch, uid: int, gid: int
) -> None:
    """The files take long. A second line with that UID would take all accounts down."""
    site.step("begin")
    monkeypatch.setattr(renumber.time, "sleep", lambda _: site.appear(uid, gid))
    group = site.group.read_text()
    with pytest.raises(accounts.RefusedError, match=r"carol|in use already"):
        site.step("finish")
    assert site.group.read_text() == group
    assert site.index().by_username["alice"].uid == OLD
    assert (site.state / "renumber/alice").exists()


def test_a_malformed_journal_stops_first_logins_only(site: Site) -> None:
    site.step("begin")
    (site.state / "renumber/alice").write_text("{}")
    with pytest.raises(accounts.RefusedError, match="journal renumber/alice is malformed"):
        site.write()
    with pytest.raises(accounts.RefusedError, match="journal renumber/alice is malformed"):
        site.step("finish")
    assert site.store.satisfied(site.store.index(), accounts.Request("bob"))


def test_an_interrupted_wait_is_waited_again(site: Site, monkeypatch) -> None:
    """The files have all changed then, but the NFS server may remember their old owner."""
    waited = []

    def cut(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 1:
            raise Interrupted

    monkeypatch.setattr(renumber.time, "sleep", cut)
    site.step("begin", settle=5)
    with pytest.raises(Interrupted):
        site.step("finish", settle=5)
    assert site.step("finish", settle=5)["files"] == 0
    assert waited == [5, 5]


# Every call that changes something, by where it is looked up.
CHANGES = ["os.chown", "accounts.replace_file", "renumber.sync_directory", "pathlib.Path.unlink"]


@pytest.mark.parametrize("gid", [None, OLD, GROUP])
@pytest.mark.parametrize("change", CHANGES)
def test_interrupted_anywhere_and_done_again(site: Site, monkeypatch, change: str, gid: int | None) -> None:
    """However often it is cut off before or behind a change, the end is the same."""
    before = site.owners()
    with monkeypatch.context() as patch:
        for at in range(100):
            module, _, name = change.rpartition(".")
            target = {"os": os, "accounts": accounts, "renumber": renumber, "pathlib.Path": Path}[module]
            original = getattr(target, name)
            calls = iter(range(100))

            def cut(*args: Any, at=at, original=original, calls=calls, **kwargs: Any) -> None:
                number = next(calls)
                if number == at // 2 and at % 2 == 0:
                    raise Interrupted
                original(*args, **kwargs)
                if number == at // 2:
                    raise Interrupted

            patch.setattr(target, name, cut)
            try:
                site.step("begin", gid=gid)
                site.step("finish", gid=gid)
                break
            except Interrupted:
                patch.setattr(target, name, original)
        else:
            pytest.fail("it never came to an end")
        assert at > 0, "nothing was interrupted"
    site.step("finish", gid=gid)
    assert site.owners() == expected(before, gid or NEW)
    assert not site.step("plan", gid=gid)["pending"]
    retired = f"{accounts.retired_name(OLD)}:retired-{OLD}%20alice:{OLD}:"
    assert site.group.read_text().splitlines().count(retired) == 1


def test_back_to_a_former_number(site: Site) -> None:
    """The directory was wrong once: the account may have its own number again, and nobody else may."""
    before = site.owners()
    for uid in (NEW, OLD, NEW, OLD):
        for step in ("begin", "finish"):
            site.step(step, uid=uid)
    assert site.owners() == before
    with pytest.raises(accounts.RefusedError, match="was an account's once"):
        site.step("plan", user="bob", uid=NEW)
    with pytest.raises(accounts.RefusedError, match="was an account's once"):
        site.step("plan", uid=OLD, gid=NEW)
    lines = site.group.read_text().splitlines()
    assert [line for line in lines if line.startswith("retired-")] == [
        f"retired-{NEW}:retired-{NEW}%20alice:{NEW}:"
    ]
    assert lines.count(f"alice:x:{OLD}:") == 1


@pytest.mark.parametrize(
    ("uid", "gid", "sentence"),
    [
        (OTHER, None, "belongs to the account bob"),
        (NEW, OTHER, "private group of the account bob"),
        (0, None, "system's or out of range"),
        (999, None, "system's or out of range"),
        (65534, None, "system's or out of range"),
        (GROUP, None, "in use already"),
    ],
)
def test_numbers_that_cannot_be(site: Site, uid: int, gid: int | None, sentence: str) -> None:
    before = site.owners()
    for step in ("plan", "begin", "finish"):
        with pytest.raises(accounts.RefusedError, match=sentence):
            site.step(step, uid=uid, gid=gid)
    assert site.owners() == before
    assert not site.step("plan", uid=OLD)["pending"]


def test_nobody_of_that_name(site: Site) -> None:
    with pytest.raises(accounts.RefusedError, match="no account of the name 'carol'"):
        site.step("plan", user="carol")


def test_one_move_at_a_time(site: Site) -> None:
    site.step("begin")
    with pytest.raises(accounts.RefusedError, match=f"on its way to UID {NEW}"):
        site.step("plan", uid=NEW + 1)


def test_without_the_storage_nothing_begins(site: Site) -> None:
    (site.homes / ".campus-storage").unlink()
    with pytest.raises(accounts.RefusedError, match="not mounted"):
        site.step("begin")
    assert not (site.state / "renumber").exists()
    with pytest.raises(accounts.RefusedError, match="not mounted"):
        site.step("finish")


def test_a_shared_primary_group_stays(site: Site) -> None:
    """With nfs_accounts_primary_group: role the group is the others', too."""
    site.passwd.write_text(accounts.Account("alice", "alice", OLD, GROUP).line())
    site.make("homes/alice/mine", OLD, GROUP)
    site.make("homes/alice/a classmate's", OTHER, GROUP)
    site.step("begin")
    site.step("finish")
    owners = site.owners()
    assert owners["homes/alice/mine"] == (NEW, GROUP)
    assert owners["homes/alice/a classmate's"] == (OTHER, GROUP)
    account = site.index().by_username["alice"]
    assert (account.uid, account.gid) == (NEW, GROUP)


# --- the playbook


def test_a_node_that_does_not_answer_ends_the_playbook() -> None:
    """Its notebooks may still write while the next play moves the files."""
    plays = yaml.safe_load((ROOT / "playbooks/renumber.yml").read_text())
    assert [play.get("any_errors_fatal", False) for play in plays] == [
        play["hosts"] == "swarm" for play in plays
    ]


@pytest.mark.parametrize("name", ["alice", "Jörg", "o'brien -rf", "a\u3000b", "a\u00a0{{ b }}/%20", "7"])
def test_servers_are_found_by_the_label_that_they_have(name: str) -> None:
    label = NfsSwarmSpawner.labels.fget(
        SimpleNamespace(prefix="", server_key="", start_id="", name="", user=SimpleNamespace(name=name))
    )[LABEL + "user"]
    said = {"nfs_renumber_report": {"username": name}}
    inventory = Inventory(ROOT / "tests/inventories/variants", extra=said)
    templar = inventory.templar("m-1", **inventory.load(ROOT / "playbooks/vars/renumber.yml"))
    assert templar.template(trust_as_template("{{ hub_stop_user }}")) == label
