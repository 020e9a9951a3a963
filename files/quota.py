#!/usr/bin/env python3
"""Keeps the disk quotas of the storage's users as the groups of their accounts say.

Runs on the storage node itself, as root: to set a quota takes CAP_SYS_ADMIN (quotactl(2)), which nothing that
listens on a network should have. It looks every second at what the accounts service has written, and asks
and sets with the programs of the package `quota`. The file system has to be mounted with user quotas.

The configuration is a JSON object:

- ``directory``: where the exports and the accounts are (roles/nfs, nfs_data_dir);
- ``default``: KiB that the files of every account may take together; 0 if that is not set, and then who is
  in none of the groups has no limit;
- ``groups``: group to KiB for its members. Who is in several has the largest, the default among them; 0 is
  no limit, and larger than any.

A limit of inodes goes with each: see KIB_PER_INODE.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import math
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

log = logging.getLogger("quota")

POLL_SECONDS = 1.0
# After a failure, such as a file system that is not mounted yet.
RETRY_SECONDS = 30.0
# Limits may be lost without a change of the files: a repair of the file system, another one in its place.
AGAIN_SECONDS = 600.0
# Below are system accounts, as in accounts.py.
MIN_UID = 1000
# An empty file takes no block, but one of the inodes that all users share. ext4 has one for each 16 KiB (the
# default inode_ratio of mke2fs.conf(5), up to 4 TiB), so that a share of the space is the same share of them.
KIB_PER_INODE = 16


class QuotaError(Exception):
    """Quotas cannot be read or set; carries one sentence."""


def complete_lines(path: Path, count: int) -> Iterator[list[str]]:
    """Fields of the lines of one of the accounts' files, but for one that is being written.

    Who writes them has fewer rights than whoever reads them here: only a regular file is read, and a line
    that is none of an account or group is left out.

    Args:
        path: The file.
        count: How many fields a line has.

    Raises:
        OSError: It cannot be read.
        QuotaError: It is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise QuotaError(f"{path} is no regular file.")
        content = file.read()
    for line in content[: content.rfind(b"\n") + 1].decode(errors="replace").splitlines():
        fields = line.split(":")
        if len(fields) == count and fields[2].isdecimal():
            yield fields
        elif line and not line.startswith("#"):
            log.warning("A malformed line of %s is left out.", path)


def limit_of(groups: list[int], default: int) -> int:
    """What somebody may have.

    Args:
        groups: KiB of each of his groups that is in the configuration; 0, no limit, is larger than any.
        default: KiB that all may have; 0 if none is set, which then takes no part.

    Returns:
        The largest of them in KiB, 0 for no limit.
    """
    if not groups:
        return default
    return 0 if 0 in groups else max([*groups, default])


def with_inodes(kib: int) -> tuple[int, int]:
    """What is set for somebody: KiB, and how many files and directories, 0 for no limit of either.

    Args:
        kib: What he may have, 0 for no limit.
    """
    # Rounded up, since the smallest limit must not become none.
    return kib, math.ceil(kib / KIB_PER_INODE)


def wanted(config: dict[str, Any]) -> dict[int, int]:
    """What every account may have.

    Args:
        config: The configuration.

    Returns:
        UID to KiB, 0 for no limit. Never one of the system's own.

    Raises:
        OSError: The accounts cannot be read.
        QuotaError: They are no regular files.
    """
    accounts = Path(config["directory"], "accounts")
    uids = {fields[0]: int(fields[2]) for fields in complete_lines(accounts / "passwd", 7)}
    limits: dict[str, list[int]] = {account: [] for account, uid in uids.items() if uid >= MIN_UID}
    for name, info, _, members in complete_lines(accounts / "group", 4):
        group = name if info in ("x", "") else unquote(info)
        for member in members.split(","):
            if member in limits and group in config["groups"]:
                limits[member].append(config["groups"][group])
    return {uids[account]: limit_of(groups, config["default"]) for account, groups in limits.items()}


def mount_point(directory: str) -> str:
    """Where the file system of a directory is mounted.

    A file system may be mounted in several places, and quota-tools know the first one only.

    Args:
        directory: On the file system.

    Raises:
        OSError: There is no such directory.
        QuotaError: The mount is not to be seen.
    """
    device = Path(directory).stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    # proc_pid_mountinfo(5): the third field is the device, the fifth the mount point, with blanks in octal.
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        fields = line.split(" ")
        if fields[2] == number:
            return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4])
    raise QuotaError(f"The mount of {directory} is not among those of this process.")


def run(command: list[str], stdin: str = "") -> str:
    """Run a program of quota-tools.

    Raises:
        QuotaError: It fails, with its own words, or does not end.
    """
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=300, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        raise QuotaError(f"{command[0]} does not end.") from None
    # quotaon(8) with -p answers by its exit code, too.
    if done.returncode and "-p" not in command:
        raise QuotaError(f"{command[0]} failed: {' '.join(done.stderr.split()) or done.returncode}")
    return done.stdout


def current(mount: str) -> dict[int, tuple[int, int]]:
    """What is set now.

    Args:
        mount: Mount point of the file system.

    Returns:
        UID to KiB and inodes as in `with_inodes`, of all users that have files or a limit.

    Raises:
        QuotaError: It has no quotas, or they are off.
    """
    if not re.search(r"user quota on .* is on\b", run(["quotaon", "-p", "-u", mount])):
        raise QuotaError(
            f"User quotas are off on {mount}: they take the mount option usrquota, on ext4 after "
            "`tune2fs -O quota`, or quotaon(8)."
        )
    # repquota(8): with -v those who have a limit and no file, too; with -n users are numbers behind a #.
    rows = csv.DictReader(run(["repquota", "-v", "-u", "-n", "-O", "csv", mount]).splitlines())
    return {
        int(row["User"].lstrip("#")): (int(row["BlockHardLimit"]), int(row["FileHardLimit"])) for row in rows
    }


def apply(config: dict[str, Any]) -> int:
    """Set the quotas that are not as they should be; nobody's but those of accounts.

    Args:
        config: The configuration.

    Returns:
        How many were set.

    Raises:
        OSError: The accounts cannot be read.
        QuotaError: The quotas cannot be read or set.
    """
    mount = mount_point(config["directory"])
    there = current(mount)
    limits = {uid: with_inodes(kib) for uid, kib in wanted(config).items()}
    changes = {uid: limit for uid, limit in limits.items() if there.get(uid, (0, 0)) != limit}
    if changes:
        # setquota(8): id, soft and hard limit of blocks of 1 KiB, the same of inodes.
        lines = [f"{uid} 0 {kib} 0 {inodes}\n" for uid, (kib, inodes) in sorted(changes.items())]
        run(["setquota", "--batch", "-u", mount], "".join(lines))
        log.info("Set the quotas of %d accounts.", len(changes))
    return len(changes)


def read_config(path: Path) -> dict[str, Any]:
    """Read the configuration.

    Raises:
        OSError: It cannot be read.
        QuotaError: It is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise QuotaError(f"{path} is no JSON: {error}.") from error


def state(paths: list[Path]) -> list[tuple[int, int, int]]:
    """What changes when one of the files does; an absent file is none of them."""
    found = [path.lstat() for path in paths if os.path.lexists(path)]
    return [(one.st_ino, one.st_size, one.st_mtime_ns) for one in found]


def keep(path: Path) -> None:
    """Apply the configuration whenever it or the accounts have changed, until the process is ended.

    Args:
        path: The configuration's file.

    Raises:
        OSError: It cannot be read.
        QuotaError: It is none.
    """
    accounts = Path(read_config(path)["directory"], "accounts")
    files = [path, accounts / "passwd", accounts / "group"]
    seen: object = None
    again = 0.0
    while True:
        # Before anything is read: what changes meanwhile is seen the next time.
        now = state(files)
        if now != seen or time.monotonic() > again:
            try:
                apply(read_config(path))
                seen, again = now, time.monotonic() + AGAIN_SECONDS
            except (OSError, QuotaError) as error:
                log.error("%s", error)
                time.sleep(RETRY_SECONDS)
        time.sleep(POLL_SECONDS)


def main() -> None:
    """Set the quotas once, or keep them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path, help="the configuration")
    parser.add_argument("--once", action="store_true", help="set them once, print how many were set, and end")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if not options.once:
            keep(options.config)
        print(apply(read_config(options.config)))
    except (OSError, QuotaError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
