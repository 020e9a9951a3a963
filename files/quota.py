#!/usr/bin/env python3
"""Keeps the disk quotas of the storage's users as the groups of their accounts say.

Runs on the storage node itself, as root: to set a quota takes CAP_SYS_ADMIN (quotactl(2)), which nothing that
listens on a network should have. It looks every second at what the accounts service has written, and asks
and sets with the programs of the package `quota`. The file system has to be mounted with user quotas.

The configuration is a JSON object:

- ``directory``: where the exports and the accounts are (roles/nfs, nfs_data_dir);
- ``default``: KiB that the files of every account may take together, 0 for no limit;
- ``groups``: group to KiB for its members. Who is in several has the largest, the default among them.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

log = logging.getLogger("quota")

POLL_SECONDS = 1.0
# After a failure, such as a file system that is not mounted yet.
RETRY_SECONDS = 30.0


class QuotaError(Exception):
    """Quotas cannot be read or set; carries one sentence."""


def complete_lines(path: Path) -> list[list[str]]:
    """Fields of the lines of one of the accounts' files, but for one that is being written."""
    content = path.read_bytes()
    lines = content[: content.rfind(b"\n") + 1].decode(errors="replace").splitlines()
    return [line.split(":") for line in lines if line and not line.startswith("#")]


def wanted(config: dict[str, Any]) -> dict[int, int]:
    """What every account may have.

    Args:
        config: The configuration.

    Returns:
        UID to KiB, 0 for no limit.

    Raises:
        OSError: The accounts cannot be read.
    """
    accounts = Path(config["directory"], "accounts")
    uids = {fields[0]: int(fields[2]) for fields in complete_lines(accounts / "passwd")}
    limits = dict.fromkeys(uids, config["default"])
    for name, info, _, members in complete_lines(accounts / "group"):
        group = name if info in ("x", "") else unquote(info)
        for member in members.split(","):
            if member in limits:
                limits[member] = max(limits[member], config["groups"].get(group, 0))
    return {uids[account]: limit for account, limit in limits.items()}


def mount_point(directory: str) -> str:
    """Where the file system of a directory is mounted."""
    path = Path(directory).resolve()
    while not path.is_mount():
        path = path.parent
    return str(path)


def run(command: list[str], stdin: str = "") -> str:
    """Run a program of quota-tools.

    Raises:
        QuotaError: It fails, with its own words.
    """
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    if done.returncode:
        raise QuotaError(f"{command[0]} failed: {' '.join(done.stderr.split()) or done.returncode}")
    return done.stdout


def current(mount: str) -> dict[int, int]:
    """What is set now: UID to KiB, of all users that have files or a limit.

    Args:
        mount: Mount point of the file system.

    Raises:
        QuotaError: It has no quotas.
    """
    # repquota(8): with -v those who have a limit and no file, too; with -n users are numbers behind a #.
    rows = csv.DictReader(run(["repquota", "-v", "-u", "-n", "-O", "csv", mount]).splitlines())
    return {int(row["User"].lstrip("#")): int(row["BlockHardLimit"]) for row in rows}


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
    changes = {uid: limit for uid, limit in wanted(config).items() if there.get(uid, 0) != limit}
    if changes:
        # setquota(8): id, soft and hard limit of blocks of 1 KiB, the same of inodes.
        lines = [f"{uid} 0 {limit} 0 0\n" for uid, limit in sorted(changes.items())]
        run(["setquota", "--batch", "-u", mount], "".join(lines))
        log.info("Set the quotas of %d accounts.", len(changes))
    return len(changes)


def state(paths: list[Path]) -> list[tuple[int, int, int]]:
    """What changes when one of the files does; an absent file is none of them."""
    found = [path.stat() for path in paths if path.exists()]
    return [(one.st_ino, one.st_size, one.st_mtime_ns) for one in found]


def keep(path: Path) -> None:
    """Apply the configuration whenever it or the accounts have changed, until the process is ended.

    Args:
        path: The configuration's file.
    """
    seen: object = None
    while True:
        config = json.loads(path.read_text(encoding="utf-8"))
        accounts = Path(config["directory"], "accounts")
        now = state([path, accounts / "passwd", accounts / "group"])
        if now != seen:
            try:
                apply(config)
                seen = now
            except (OSError, QuotaError, subprocess.TimeoutExpired) as error:
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
    if not options.once:
        keep(options.config)
    try:
        print(apply(json.loads(options.config.read_text(encoding="utf-8"))))
    except (OSError, QuotaError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
