"""Moves an account and its files to another UID and GID (playbooks/renumber.yml).

Three steps, each of which may be repeated; the last two may be interrupted anywhere:

``plan``
    Says what would change, or in one sentence why it cannot be. Changes nothing.
``begin``
    Writes the journal. From then on the accounts service refuses the account, so no server of the user can
    start, and the numbers to come are fixed.
``finish``
    Changes the owner of the files, then the account's lines, then removes the journal.

A file changes if it has the account's old UID, and its group if that was the account's own. Symbolic links
are changed themselves and never followed, other file systems are left alone, and so are all other homes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from accounts import Account, RefusedError, Settings, Store, clean_id, clean_name, sync_directory


class Renumbering:
    """One account on its way from its old numbers to its new ones."""

    def __init__(self, store: Store, username: str, uid: int, gid: int | None) -> None:
        """Finds the account, and the journal of an earlier run.

        Args:
            store: The account files and homes.
            username: The user's name in the directory.
            uid: The new UID.
            gid: The new GID; without one that of the account's own group, or the shared one that it has.

        Raises:
            RefusedError: there is no such account, or somebody else has the numbers.
        """
        self.store = store
        index = store.index()
        username = clean_name(username)
        if username not in index.by_username:
            raise RefusedError(404, f"There is no account of the name {username!r}.")
        account = index.by_username[username]
        self.journal = store.journal(account)
        move = next((one for one in store.moves() if one.account == account.account), None)
        self.begun = move is not None
        if move:
            account = Account(account.username, account.account, move.uid, move.gid)
        self.old = account
        if gid is None:
            gid = uid if account.gid == account.uid else account.gid
        self.uid, self.gid = clean_id(uid, "UID"), clean_id(gid, "GID")
        if move and (self.uid, self.gid) != (move.new_uid, move.new_gid):
            raise RefusedError(
                409,
                f"The account {account.account} is on its way to UID {move.new_uid} and GID "
                f"{move.new_gid}: finish that first.",
            )
        if self.pending:
            store.check_move(self.old, self.uid, self.gid)

    @property
    def pending(self) -> bool:
        """Whether there is anything to do."""
        return self.begun or (self.uid, self.gid) != (self.old.uid, self.old.gid)

    async def begin(self) -> None:
        """Writes the journal, from which on the numbers to come are taken.

        Raises:
            OSError: it cannot be written.
            RefusedError: another process holds the lock, or somebody else has the numbers.
        """
        async with self.store.lock():
            # again: somebody may have got them just before
            self.store.check_move(self.old, self.uid, self.gid)
            self._write_journal()

    def _write_journal(self) -> None:
        self.journal.parent.mkdir(mode=0o700, exist_ok=True)
        numbers = {"uid": self.old.uid, "gid": self.old.gid, "new_uid": self.uid, "new_gid": self.gid}
        unfinished = self.journal.with_name(f".{self.journal.name}")
        with unfinished.open("w", encoding="utf-8") as file:
            json.dump(numbers, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self.journal)
        sync_directory(self.journal.parent)

    def wanted(self, found: os.stat_result) -> tuple[int, int]:
        """Owner and group that a file shall have."""
        uid = self.uid if found.st_uid == self.old.uid else found.st_uid
        own_group = self.old.gid == self.old.uid and found.st_gid == self.old.gid
        named = found.st_uid == self.old.uid and found.st_gid == self.old.gid
        return uid, self.gid if own_group or named else found.st_gid

    def entries(self, top: Path) -> Iterator[tuple[int, str]]:
        """Everything below a directory, and itself, each as a directory's descriptor and a name in it."""
        parent = os.open(top.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            device = os.stat(top.name, dir_fd=parent, follow_symlinks=False).st_dev
            for _, directories, files, descriptor in os.fwalk(top.name, onerror=unreadable, dir_fd=parent):
                # the tree may change under us: what is gone is nobody's any more
                names = [*directories, *files]
                here = {name: lstat(name, descriptor) for name in names}
                directories[:] = [name for name in directories if here[name] and here[name].st_dev == device]
                yield from (
                    (descriptor, name) for name in names if here[name] and here[name].st_dev == device
                )
            # Last: until then the home's owner tells that there is something left to do.
            yield parent, top.name
        finally:
            os.close(parent)

    def move(self, tops: list[Path], *, change: bool) -> int:
        """Changes the owner of the files.

        Args:
            tops: Directories in which they are.
            change: False: only count.

        Returns:
            How many had to be changed.

        Raises:
            OSError: one cannot be changed.
        """
        # by inode: a file of several names is one
        changed = set()
        for top in tops:
            if not top.is_dir() or top.is_symlink():
                continue
            for descriptor, name in self.entries(top):
                found = lstat(name, descriptor)
                if found is None or self.wanted(found) == (found.st_uid, found.st_gid):
                    continue
                changed.add((found.st_dev, found.st_ino))
                if change:
                    with contextlib.suppress(FileNotFoundError):
                        os.chown(name, *self.wanted(found), dir_fd=descriptor, follow_symlinks=False)
        return len(changed)

    async def finish(self) -> None:
        """Changes the account's lines and removes the journal.

        Raises:
            OSError: a file cannot be written.
            RefusedError: another process holds the lock, or somebody else has the numbers.
        """
        async with self.store.lock():
            # again: a UID that is there twice would make the files unreadable, for all accounts
            self.store.check_move(self.old, self.uid, self.gid)
            self.store.renumber(self.old, self.uid, self.gid)
        self.journal.unlink(missing_ok=True)
        sync_directory(self.journal.parent)


def unreadable(error: OSError) -> None:
    """Stops at a directory that cannot be read; one that is gone is nobody's any more."""
    if not isinstance(error, FileNotFoundError):
        raise error


def lstat(name: str, descriptor: int) -> os.stat_result | None:
    """A file's attributes, None if it is gone."""
    try:
        return os.stat(name, dir_fd=descriptor, follow_symlinks=False)
    except FileNotFoundError:
        return None


def run(arguments: argparse.Namespace, settings: Settings) -> dict[str, object]:
    """Does one step.

    Args:
        arguments: The command line.
        settings: Where the account files and the homes are.

    Returns:
        The user's and the account's name, its old and new numbers, whether there is something to do, and how
        many files have to be, or were, changed.

    Raises:
        OSError: a file cannot be changed.
        RefusedError: it cannot be done.
    """
    store = Store(settings)
    moving = Renumbering(store, arguments.username, arguments.uid, arguments.gid)
    report = {
        "username": moving.old.username,
        "account": moving.old.account,
        "pending": moving.pending,
        "old": [moving.old.uid, moving.old.gid],
        "new": [moving.uid, moving.gid],
    }
    if not moving.pending:
        return {**report, "files": 0}
    with store.homes():
        tops = [Path(settings.homes_dir, moving.old.account), *arguments.also]
        if arguments.step == "begin" and not moving.begun:
            asyncio.run(moving.begin())
        finishing = arguments.step == "finish"
        if finishing and not moving.begun:
            raise RefusedError(409, f"No move of the account {moving.old.account} was begun.")
        files = moving.move(tops, change=finishing) if arguments.step != "begin" else 0
        if finishing:
            # What the NFS server remembers of the old owners. Even if no file has changed: the run before may
            # have changed them all, and have been interrupted here.
            time.sleep(arguments.settle)
            asyncio.run(moving.finish())
    return {**report, "files": files}


def main() -> None:
    """Reads the command line, does a step, and prints a line of JSON or a sentence on standard error."""
    parser = argparse.ArgumentParser(prog="renumber.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("step", choices=["plan", "begin", "finish"])
    parser.add_argument("username", help="the user's name in the directory")
    parser.add_argument("uid", type=int, help="the new UID")
    parser.add_argument("--gid", type=int, help="the new GID of the primary group")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="directories beside the home")
    parser.add_argument(
        "--settle", type=float, default=0, help="seconds to wait after the files have changed"
    )
    try:
        print(json.dumps(run(parser.parse_args(), Settings.from_arguments([]))))
    except RefusedError as refused:
        sys.exit(refused.reason)
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}.")


if __name__ == "__main__":
    main()
