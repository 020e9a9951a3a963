"""The accounts service from outside, over HTTP, on directories of its own.

It gives homes away, which only root may.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import pathlib
import random
import stat
import struct

import accounts
import pytest
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

pytestmark = pytest.mark.root
TOKEN = "a-token"


class Site:
    """A storage of its own, and the service on it."""

    def __init__(self, path: pathlib.Path) -> None:
        """Makes the storage."""
        self.homes = path / "homes"
        self.state = path / "state"
        self.homes.mkdir()
        self.state.mkdir()
        for file in (self.state / "passwd", self.state / "group", self.homes / ".campus-storage"):
            file.touch()
        self.stack = contextlib.AsyncExitStack()

    async def start(self, **settings) -> TestClient:
        """Starts the service, a second one beside the first if asked again."""
        values = {"homes_dir": str(self.homes), "state_dir": str(self.state), "system_files": "", **settings}
        service = accounts.Service(accounts.Settings(**values), TOKEN)
        client = TestClient(TestServer(service.app()), headers={"Authorization": f"Bearer {TOKEN}"})
        return await self.stack.enter_async_context(client)

    @property
    def passwd(self) -> list[list[str]]:
        """Fields of the lines of passwd."""
        return [line.split(":") for line in (self.state / "passwd").read_text().splitlines()]

    def groups_of(self, account: str) -> set[str]:
        """Groups as libnss-extrausers would tell them: of all lines with that member."""
        lines = [line.split(":") for line in (self.state / "group").read_text().splitlines()]
        return {line[0] for line in lines if account in line[3].split(",")}


@pytest.fixture
async def site(tmp_path):
    """A storage."""
    made = Site(tmp_path)
    async with made.stack:
        yield made


async def put(client, username, expected=(200, 201), **body):
    """Asks for an account and returns the answer's content."""
    path = "/accounts/" + "".join(f"%{byte:02X}" for byte in username.encode())
    # Encoded already: the client would take `..` for a way up.
    url = URL(f"{str(client.make_url('/')).rstrip('/')}{path}", encoded=True)
    async with client.session.put(url, json=body) as response:
        content = await response.json()
        assert response.status in (expected if isinstance(expected, tuple) else (expected,)), content
        if response.status >= 400:
            assert content["reason"].endswith(".")
        return content


async def test_a_new_user_gets_an_account_and_a_home(site):
    client = await site.start()
    made = await put(client, "alice", 201, groups=["students"])
    assert made == {
        "username": "alice",
        "account": "alice",
        "uid": 100000,
        "gid": 100000,
        "groups": {"students": 20001},
        "home": "/homes/alice",
        "locked": False,
    }
    home = (site.homes / "alice").stat()
    assert (home.st_uid, home.st_gid, stat.S_IMODE(home.st_mode)) == (100000, 100000, 0o700)
    assert site.passwd == [["alice", "x", "100000", "100000", "alice", "/homes/alice", "/usr/sbin/nologin"]]
    assert "alice:x:100000:\n" in (site.state / "group").read_text()
    assert await put(client, "alice", 200, groups=["students"]) == made
    assert await (await client.get("/accounts/alice")).json() == made
    assert await (await client.get("/accounts")).json() == {"accounts": [made]}


async def test_changed_groups_take_a_while_to_be_known(site):
    """An account that has joined or left a group is remembered as it was for a while."""
    client = await site.start(group_expiration=1)
    assert "settle" not in await put(client, "alice", 201, groups=["students"])
    assert "settle" not in await put(client, "alice", groups=["students"])
    assert 0 < (await put(client, "alice", groups=["students", "course-1"]))["settle"] <= 1
    assert 0 < (await put(client, "alice", groups=["students", "course-1"]))["settle"] <= 1
    await asyncio.sleep(1)
    assert "settle" not in await put(client, "alice", groups=["students", "course-1"])
    assert "settle" in await put(client, "alice", groups=["students"])


async def test_role_groups_have_their_gids_from_the_start(site):
    client = await site.start()
    assert (await put(client, "tina", groups=["teachers", "course-1"]))["groups"] == {
        "teachers": 20002,
        "course-1": 20003,
    }


async def test_primary_group_of_the_role(site):
    client = await site.start(primary_group="role")
    assert (await put(client, "alice", groups=["students"]))["gid"] == 20001
    assert (await put(client, "tina", groups=["students", "teachers", "c1"]))["gid"] == 20002
    assert (await put(client, "eve", groups=[]))["gid"] == (await put(client, "eve"))["uid"]
    assert (await put(client, "alice", 200, groups=["students"]))["groups"] == {"students": 20001}


async def test_fifty_at_once_are_one_account(site):
    client = await site.start()
    made = await asyncio.gather(*(put(client, "alice", groups=["students"]) for _ in range(50)))
    assert all(one == made[0] for one in made)
    assert len(site.passwd) == 1
    lines = (site.state / "group").read_text().splitlines()
    assert len(lines) == len(set(lines))


async def test_two_processes_never_give_a_uid_twice(site):
    clients = [await site.start(), await site.start()]
    names = [f"user{number % 40}" for number in range(80)]
    random.Random(3).shuffle(names)  # noqa: S311 - no secret, but the same each time
    made = await asyncio.gather(
        *(put(clients[n % 2], name, groups=["students"]) for n, name in enumerate(names))
    )
    assert len({one["uid"] for one in made}) == 40
    assert len(site.passwd) == 40


async def test_groups_follow_the_directory(site):
    client = await site.start()
    await put(client, "alice", groups=["students", "c1", "c2"])
    await put(client, "bob", groups=["students", "c1"])
    assert set((await put(client, "alice", 200, groups=["teachers", "c2"]))["groups"]) == {"teachers", "c2"}
    assert site.groups_of("alice") == {"teachers", "c2"}
    assert site.groups_of("bob") == {"students", "c1"}
    # Groups outlive their members: their GIDs are on files.
    assert (await put(client, "alice", groups=["c1"]))["groups"]["c1"] == (await put(client, "bob"))[
        "groups"
    ]["c1"]
    # Without `groups` nothing changes; another process sees the same.
    assert set((await put(client, "alice", 200))["groups"]) == {"c1"}
    assert set((await (await (await site.start()).get("/accounts/alice")).json())["groups"]) == {"c1"}


async def test_leaving_and_joining_in_one_batch(site):
    client = await site.start()
    await put(client, "alice", groups=["c1", "c2"])
    await asyncio.gather(
        *(put(client, "alice", groups=groups) for groups in (["c1"], ["c2"], ["c1", "c3"], ["c3", "c2"]))
    )
    groups = (await (await client.get("/accounts/alice")).json())["groups"]
    assert site.groups_of("alice") == set(groups)
    assert len(groups) in (1, 2)


async def test_odd_group_names_have_lines_and_keep_their_names(site):
    client = await site.start()
    made = await put(client, "alice", groups=["Math 101: Übung", "staff", "alice"])
    assert set(made["groups"]) == {"Math 101: Übung", "staff", "alice"}
    again = await (await (await site.start()).get("/accounts/alice")).json()
    assert again == made
    # "staff" is a group of Debian's and "alice" a private one: neither is joined by being called so.
    assert not site.groups_of("alice") & {"staff", "alice"}


@pytest.mark.parametrize("name", ["root", "daemon", "nobody", "www-data", "nbbuild", "jupyterhub", "docker"])
async def test_system_names_are_refused(site, name):
    client = await site.start()
    assert "cannot be used" in (await put(client, name, 400, groups=["students"]))["reason"]
    assert site.passwd == []


async def test_names_of_this_system_are_refused(site, tmp_path):
    (tmp_path / "passwd").write_text("printer:x:7000:7000::/:/bin/sh\n")
    await put(await site.start(system_files=str(tmp_path / "passwd")), "printer", 400)


@pytest.mark.parametrize(
    "name", ["../../etc", "-rf", "..", ".", "a/b", "a%2Fb", "o'brien", "Jörg", "12345", "$(id)"]
)
async def test_hostile_names_get_a_home_of_their_own(site, name):
    client = await site.start()
    made = await put(client, name, 201)
    assert made["username"] == name
    assert [entry.name for entry in site.homes.iterdir() if entry.name != ".campus-storage"] == [
        made["account"]
    ]
    assert (site.homes / made["account"]).stat().st_uid == made["uid"]


@pytest.mark.parametrize("name", ["x" * 300, "a\nb", " "])
async def test_impossible_names_are_refused(site, name):
    client = await site.start()
    await put(client, name, 400)
    assert site.passwd == []


@pytest.mark.parametrize(
    "body",
    [
        {"groups": "students"},
        {"groups": [1]},
        {"groups": ["a\nb"]},
        {"uid": "5003"},
        {"uid": 0},
        {"uid": 999},
        {"gid": 65534},
        {"uid": True},
        {"shell": "/bin/sh"},
    ],
)
async def test_wrong_bodies_are_refused(site, body):
    await put(await site.start(), "alice", 400, **body)
    assert site.passwd == []


async def test_a_body_that_is_no_json_is_refused(site):
    client = await site.start()
    for data in (b"{", b"[]", b"\xff"):
        async with client.put("/accounts/alice", data=data) as response:
            assert response.status == 400
            assert "reason" in await response.json()


async def test_ids_of_the_directory(site):
    client = await site.start()
    carol = await put(client, "carol", 201, uid=5003, gid=5003)
    assert (carol["uid"], carol["gid"]) == (5003, 5003)
    assert (site.homes / "carol").stat().st_uid == 5003
    await put(client, "carol", 200, uid=5003, gid=5003)
    assert "renumber" in (await put(client, "carol", 409, uid=5004))["reason"]
    assert "carol" in (await put(client, "dave", 409, uid=5003))["reason"]
    assert "carol" in (await put(client, "dave", 409, uid=5005, gid=5003))["reason"]
    assert "students" in (await put(client, "dave", 409, uid=5005, gid=20001))["reason"]
    # Several users may share a group of the directory, but nobody gets it as his private one.
    await put(client, "dave", 201, uid=5005, gid=5100)
    await put(client, "erin", 201, uid=5006, gid=5100)
    await put(client, "frank", 409, uid=5100)


async def test_given_ids_are_never_allocated_again(site):
    client = await site.start(uid_max=100003)
    await put(client, "carol", uid=100000)
    await put(client, "dave", uid=100001, gid=100002)
    assert (await put(client, "alice"))["uid"] == 100003
    assert "given out" in (await put(client, "bob", 503))["reason"]
    assert (await put(client, "alice", 200))["uid"] == 100003


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xe9"]
)
async def test_a_token_is_needed(site, header):
    client = await site.start()
    for method, path in (("GET", "/accounts"), ("GET", "/accounts/alice"), ("PUT", "/accounts/alice")):
        async with client.request(method, path, headers={"Authorization": header}) as response:
            assert response.status == 401
            assert "token" in (await response.json())["reason"]
    assert site.passwd == []


async def test_unknown_accounts_and_paths(site):
    client = await site.start()
    for path in ("/accounts/nobody-yet", "/nowhere"):
        async with client.get(path) as response:
            assert response.status == 404
            assert "reason" in await response.json()


# --- homes


async def test_a_foreign_home_is_refused_and_left_alone(site):
    client = await site.start()
    (site.homes / "alice").mkdir(mode=0o755)
    os.chown(site.homes / "alice", 4711, 4711)
    assert "4711" in (await put(client, "alice", 409))["reason"]
    assert (site.homes / "alice").stat().st_uid == 4711
    assert site.passwd == []


async def test_a_symbolic_link_is_never_followed(site, tmp_path):
    client = await site.start()
    victim = tmp_path / "victim"
    victim.mkdir()
    (site.homes / "alice").symlink_to(victim)
    (site.homes / "bob").write_text("")
    await put(client, "alice", 409)
    await put(client, "bob", 409)
    assert victim.stat().st_uid == 0
    assert list(victim.iterdir()) == []


async def test_a_lost_home_is_made_again(site):
    client = await site.start()
    await put(client, "alice")
    (site.homes / "alice").rmdir()
    await put(client, "alice", 200)
    assert (site.homes / "alice").stat().st_uid == 100000


async def test_a_half_made_home_is_finished(site):
    (site.homes / ".alice.new").mkdir()
    await put(await site.start(), "alice", 201)
    assert sorted(entry.name for entry in site.homes.iterdir()) == [".campus-storage", "alice"]


async def test_an_existing_home_keeps_its_mode_and_files(site):
    client = await site.start()
    await put(client, "alice")
    (site.homes / "alice" / "file").write_text("mine")
    (site.homes / "alice").chmod(0o750)
    await put(client, "alice", 200)
    assert stat.S_IMODE((site.homes / "alice").stat().st_mode) == 0o750
    assert (site.homes / "alice" / "file").read_text() == "mine"


# --- storage and crashes


async def test_without_storage_there_are_no_accounts(site):
    client = await site.start()
    (site.homes / ".campus-storage").unlink()
    assert "not mounted" in (await put(client, "alice", 503))["reason"]
    assert (await client.get("/healthz")).status == 503
    assert site.passwd == []
    (site.homes / ".campus-storage").touch()
    await put(client, "alice", 201)
    assert (await client.get("/healthz")).status == 200


async def test_missing_account_files_are_no_empty_ones(site):
    client = await site.start()
    await put(client, "alice")
    (site.state / "passwd").rename(site.state / "away")
    await put(client, "alice", 503)
    await put(client, "bob", 503)
    (site.state / "away").rename(site.state / "passwd")
    assert (await put(client, "bob"))["uid"] == 100001


@pytest.mark.parametrize("cut", [1, 5, 20, 40])
async def test_a_line_that_a_crash_cut_short_is_healed(site, cut):
    client = await site.start()
    await put(client, "alice", groups=["students"])
    before = site.passwd
    line = accounts.Account("bob", "bob", 100001, 100001).line()
    with (site.state / "passwd").open("a") as file:
        file.write(line[:cut])
    with (site.state / "group").open("a") as file:
        file.write("students:x:20001:bo")
    for service in (client, await site.start()):
        assert (await service.get("/accounts/alice")).status == 200
    assert (await put(client, "carol"))["uid"] == 100001
    assert site.passwd[: len(before)] == before
    assert [line[0] for line in site.passwd] == ["alice", "carol"]
    assert all(line.count(":") == 3 for line in (site.state / "group").read_text().splitlines())


async def test_a_missing_last_newline_loses_nobody(site):
    (site.state / "passwd").write_text(accounts.Account("bob", "bob", 100000, 100000).line().rstrip("\n"))
    client = await site.start()
    assert (await put(client, "alice"))["uid"] == 100001
    assert [line[0] for line in site.passwd] == ["bob", "alice"]


async def test_a_crash_between_the_two_files_is_made_good(site):
    (site.state / "passwd").write_text(accounts.Account("alice", "alice", 100000, 100000).line())
    client = await site.start()
    assert (await put(client, "alice", 200, groups=["students"]))["groups"] == {"students": 20001}
    assert "alice:x:100000:\n" in (site.state / "group").read_text()
    assert site.groups_of("alice") == {"students"}
    assert (site.homes / "alice").is_dir()


async def test_a_full_disk_leaves_no_half_line(site, monkeypatch):
    client = await site.start()
    await put(client, "alice")
    before = (site.state / "passwd").read_bytes()
    write = os.write
    monkeypatch.setattr(accounts.os, "write", lambda descriptor, data: write(descriptor, data[:10]))
    assert "space" in (await put(client, "bob", 503))["reason"]
    assert (site.state / "passwd").read_bytes() == before
    monkeypatch.undo()
    assert (await put(client, "bob", 201))["uid"] == 100001


async def test_changes_from_outside_are_seen(site):
    client = await site.start()
    await put(client, "alice")
    text = (site.state / "passwd").read_text()
    (site.state / "new").write_text(text.replace(":100000:100000:", ":7000:7000:"))
    (site.state / "new").replace(site.state / "passwd")
    assert (await (await client.get("/accounts/alice")).json())["uid"] == 7000


async def test_another_writer_is_waited_for_but_not_for_ever(site):
    client = await site.start()
    await put(client, "alice")
    with (site.state / ".lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "writing" in (await put(client, "bob", 503))["reason"]
        # Who has an account needs no lock.
        await put(client, "alice", 200)
    await put(client, "bob", 201)


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (OSError(errno.ENOLCK, os.strerror(errno.ENOLCK)), 503, "cannot be locked: No locks available"),
        (RuntimeError("nobody has thought of it"), 500, "its log says why"),
    ],
)
async def test_a_lock_that_fails_is_answered_once(site, monkeypatch, caplog, error, status, sentence):
    client = await site.start()

    def fail(_descriptor, _operation):
        raise error

    monkeypatch.setattr(accounts.fcntl, "flock", fail)
    async with asyncio.timeout(5):
        assert sentence in (await put(client, "alice", status))["reason"]
    said = len(caplog.records)
    await asyncio.sleep(0.1)
    assert len(caplog.records) == said
    monkeypatch.undo()
    await put(client, "alice", 201)


# --- accounts on their way to other numbers


async def test_an_account_on_its_way_is_not_shown_with_its_old_numbers(site):
    """Nor is its new UID given out: not the next one, and not as the directory's."""
    client = await site.start()
    shown = await put(client, "alice", 201)
    journal = site.state / "renumber/alice"
    journal.parent.mkdir()
    journal.write_text(json.dumps({"uid": 100000, "gid": 100000, "new_uid": 100001, "new_gid": 100001}))
    reason = (await put(client, "alice", 409))["reason"]
    answer = await client.get("/accounts/alice")
    assert (answer.status, await answer.json()) == (409, {"reason": reason})
    assert "alice is being moved to UID 100001" in (await put(client, "bob", 409, uid=100001))["reason"]
    assert (await put(client, "bob", 201))["uid"] == 100002
    journal.unlink()
    assert await (await client.get("/accounts/alice")).json() == shown


# --- the NFS server


async def nfs_server(answer):
    """Starts something on a port that reads a call and writes an answer."""

    async def serve(reader, writer):
        call = await reader.readexactly(44)
        writer.write(answer(call))
        await writer.drain()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_with_an_nfs_server_that_answers(site):
    def answer(call):
        assert struct.unpack(">11I", call)[4:7] == (100003, 4, 0)
        return struct.pack(">I", 0x80000018) + call[4:8] + struct.pack(">5I", 1, 0, 0, 0, 0)

    server, address = await nfs_server(answer)
    async with server:
        client = await site.start(nfs_address=address)
        await put(client, "alice", 201)
        assert (await client.get("/healthz")).status == 200


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
async def test_an_nfs_server_that_does_not_answer_is_told(site, answer):
    server, address = await nfs_server(lambda _call: answer)
    async with server:
        client = await site.start(nfs_address=address)
        answers = await asyncio.gather(
            *(put(client, f"user{n}", 503) for n in range(20)), put(client, "alice", 503)
        )
        assert all("NFS server" in one["reason"] for one in answers)
        assert (await client.get("/healthz")).status == 503
    assert site.passwd == []


async def test_an_nfs_server_that_is_gone(site):
    client = await site.start(nfs_address="127.0.0.1:1")
    await put(client, "alice", 503)
    client = await site.start(nfs_address="/nowhere/nfs.sock")
    await put(client, "alice", 503)


# --- speed


async def test_metrics(site):
    client = await site.start()
    await put(client, "alice")
    text = await (await client.get("/metrics")).text()
    assert "accounts_known 1.0" in text
    assert 'accounts_requests_total{method="PUT",status="201"} 1.0' in text


async def test_many_accounts_do_not_slow_the_next_one(site):
    """Neither file is written anew for a new account. How fast it is, the benchmarks measure."""
    count = 20000
    with (site.state / "passwd").open("w") as passwd, (site.state / "group").open("w") as group:
        for name, gid in (("students", 20001), ("teachers", 20002)):
            group.write(accounts.Group(name, name, gid).line())
        for number in range(count):
            name = f"user{number}"
            passwd.write(accounts.Account(name, name, 100000 + number, 100000 + number).line())
            group.write(f"{name}:x:{100000 + number}:\nstudents:x:20001:{name}\n")
    files = [(site.state / name).stat().st_ino for name in ("passwd", "group")]
    client = await site.start()
    await put(client, "first", 201, groups=["students"])
    made = await asyncio.gather(*(put(client, f"new{n}", 201, groups=["students"]) for n in range(100)))
    assert {one["uid"] for one in made} == set(range(100000 + count + 1, 100000 + count + 101))
    assert [(site.state / name).stat().st_ino for name in ("passwd", "group")] == files
