"""Disk quotas: who may have how much, and what is set of it.

The programs of quota-tools are stood in for; the real ones run in tests/e2e/test_courses.py.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import quota

PASSWD = """\
hub:x:991:991:hub:/homes/hub:/usr/sbin/nologin
this line is none
alice:x:100000:100000:alice:/homes/alice:/usr/sbin/nologin
ben:x:100001:100001:ben:/homes/ben:/usr/sbin/nologin
cut:x:100002:100002:cut:/homes/cu"""
GROUP = """\
nbgrader-algo1:x:20003:
nbgrader-algo1:x:20003:ben
nbgrader-db1:x:20004:
nbgrader-db1:x:20004:alice,ben,hub
formgrade-algo1:x:20006:alice
short:x
odd-0123456789ab:Odd%20Group:20005:alice
"""
# What repquota and setquota do, with a file of limits for a file system.
REPQUOTA = """#!/bin/sh
[ ! -e "$BROKEN" ] || { echo "repquota: Mountpoint not found or has no quota enabled." >&2; exit 1; }
blocks=BlockUsed,BlockSoftLimit,BlockHardLimit,BlockGrace
echo User,BlockStatus,FileStatus,$blocks,FileUsed,FileSoftLimit,FileHardLimit,FileGrace
while read -r uid _ hard _ inodes; do echo "#$uid,ok,ok,4,0,$hard,,1,0,$inodes,"; done < "$LIMITS"
"""
QUOTAON = """#!/bin/sh
[ ! -e "$OFF" ] || { echo "user quota on $3 (/dev/sda1) is off"; exit 0; }
echo "user quota on $3 (/dev/sda1) is on"; exit 1
"""
SETQUOTA = """#!/bin/sh
echo "$@" >> "$LIMITS.calls"
cat >> "$LIMITS"
"""


@pytest.fixture
def storage(tmp_path, monkeypatch):
    """A directory with accounts, and programs in PATH."""
    (tmp_path / "accounts").mkdir()
    (tmp_path / "accounts/passwd").write_text(PASSWD)
    (tmp_path / "accounts/group").write_text(GROUP)
    for name, text in (("repquota", REPQUOTA), ("setquota", SETQUOTA), ("quotaon", QUOTAON)):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("LIMITS", str(tmp_path / "limits"))
    monkeypatch.setenv("BROKEN", str(tmp_path / "broken"))
    monkeypatch.setenv("OFF", str(tmp_path / "off"))
    (tmp_path / "limits").touch()
    return tmp_path


def config(storage, default=0, **groups):
    return {
        "directory": str(storage),
        "default": default,
        "groups": {name.replace("_", "-"): size for name, size in groups.items()},
    }


@pytest.mark.parametrize(
    ("settings", "limits"),
    [
        ({}, {100000: 0, 100001: 0}),
        ({"default": 7}, {100000: 7, 100001: 7}),
        ({"nbgrader_algo1": 9, "nbgrader_db1": 5}, {100000: 5, 100001: 9}),
        ({"default": 7, "nbgrader_algo1": 9, "nbgrader_db1": 5}, {100000: 7, 100001: 9}),
        ({"Odd Group": 3}, {100000: 3, 100001: 0}),
        ({"nobody_is_in_it": 3}, {100000: 0, 100001: 0}),
        ({"formgrade_algo1": 0, "nbgrader_db1": 5}, {100000: 0, 100001: 5}),
        ({"default": 7, "formgrade_algo1": 7, "nbgrader_db1": 5}, {100000: 7, 100001: 7}),
    ],
)
def test_the_largest_of_the_groups_holds(storage, settings, limits):
    assert quota.wanted(config(storage, **settings)) == limits


def test_only_what_differs_is_set(storage):
    """And nothing of users who have no account."""
    (storage / "limits").write_text("0 0 0 0 0\n1000 0 77 0 0\n100001 0 9 0 1\n")
    settings = config(storage, nbgrader_algo1=9, nbgrader_db1=5)
    assert quota.apply(settings) == 1
    assert (storage / "limits").read_text().splitlines()[3:] == ["100000 0 5 0 1"]
    assert quota.apply(settings) == 0
    calls = (storage / "limits.calls").read_text().splitlines()
    assert calls == [f"--batch -u {quota.mount_point(str(storage))}"]


def test_inodes_are_shared_as_the_space_is(storage):
    """One for each 16 KiB, and one at least; without a quota there is no limit of them either."""
    quota.apply(config(storage, nbgrader_algo1=5 * 2**20, nbgrader_db1=17))
    assert (storage / "limits").read_text().splitlines() == [
        "100000 0 17 0 2",
        f"100001 0 {5 * 2**20} 0 {5 * 2**30 // 16384}",
    ]
    assert quota.with_inodes(1) == (1, 1)
    assert quota.with_inodes(0) == (0, 0)


def test_a_quota_without_a_limit_of_inodes_is_set_again(storage):
    """An older version has left it like that."""
    (storage / "limits").write_text("100001 0 160 0 0\n")
    settings = config(storage, nbgrader_algo1=160)
    assert quota.apply(settings) == 1
    assert (storage / "limits").read_text().splitlines()[1:] == ["100001 0 160 0 10"]
    assert quota.apply(settings) == 0


def test_no_quotas_any_more_are_lifted(storage):
    quota.apply(config(storage, nbgrader_algo1=9))
    assert quota.apply(config(storage)) == 1
    assert (storage / "limits").read_text().splitlines()[-1] == "100001 0 0 0 0"


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("broken", "repquota failed: repquota: Mountpoint not found or has no quota enabled."),
        ("off", "User quotas are off on "),
        ("fifo", "accounts/passwd is no regular file."),
        ("link", "Too many levels of symbolic links"),
        ("config", "config.json is no JSON"),
    ],
)
def test_what_stands_in_the_way_is_told(storage, what, sentence):
    """In one sentence, and a file that is none of the accounts service's is not waited for."""
    passwd, path = storage / "accounts/passwd", storage / "config.json"
    path.write_text(json.dumps(config(storage)) if what != "config" else "{")
    if what in ("fifo", "link"):
        passwd.unlink()
        os.mkfifo(passwd) if what == "fifo" else passwd.symlink_to("/dev/zero")
    else:
        (storage / what).touch()
    done = subprocess.run(
        [sys.executable, quota.__file__, "--once", str(path)], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert sentence in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_new_members_and_new_settings_are_seen(storage):
    """By the process that keeps the quotas, without anybody telling it."""
    path = storage / "config.json"
    path.write_text(json.dumps(config(storage, nbgrader_algo1=9)))
    process = subprocess.Popen([sys.executable, quota.__file__, str(path)], stderr=subprocess.DEVNULL)

    def last(expected):
        deadline = time.monotonic() + 20
        while (storage / "limits").read_text().splitlines()[-1:] != [expected]:
            assert time.monotonic() < deadline, (storage / "limits").read_text()
            assert process.poll() is None
            time.sleep(0.05)

    try:
        last("100001 0 9 0 1")
        with (storage / "accounts/group").open("a") as file:
            file.write("nbgrader-algo1:x:20003:alice\n")
        last("100000 0 9 0 1")
        path.with_suffix(".new").write_text(json.dumps(config(storage, default=11, nbgrader_algo1=9)))
        Path(path.with_suffix(".new")).replace(path)
        last("100001 0 11 0 1")
    finally:
        process.kill()
        process.wait()
