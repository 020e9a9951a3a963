#!/usr/bin/python
"""Ansible module: archives homes, and removes those whose archive was verified."""

from __future__ import annotations

DOCUMENTATION = r"""
module: home_archive
short_description: Archives homes, and removes those whose archive was verified
description:
  - Writes a home into C(ACCOUNT-DATE.tar.gz) with numeric owners, extended attributes, ACLs and sparse files,
    compares it with the home, and writes its checksum beside it, in the words of C(sha256sum --check).
  - A home that has not changed since its last archive needs none, so an interrupted run is simply run again.
  - Removes a home only when told so, and only when the checksum of its last archive is right and archive and
    home are the same in this very run.
  - Symbolic links are archived and removed themselves and never followed.
  - Nobody may write into the homes meanwhile.
options:
  homes:
    description: Directory of the homes, each called like its account.
    type: path
    required: true
  dest:
    description: Directory of the archives; only root may read it.
    type: path
    required: true
  accounts:
    description: Whose homes. Every home is archived or removed in turn, and the first trouble is the end.
    type: list
    elements: dict
    required: true
    suboptions:
      account:
        description: Name of the account and of its home.
        type: str
        required: true
      uid:
        description: UID of the account; a home of another one is left alone.
        type: int
        required: true
      archive:
        description: Whether the home is archived if it has changed since its last archive, or has none.
        type: bool
        default: true
      delete:
        description: Whether the home is removed.
        type: bool
        default: false
  spare:
    description: MiB that stay free where the archives are, even if nothing can be compressed.
    type: int
    default: 1024
requirements:
  - GNU tar, find and gzip
author:
  - Campus JupyterHub contributors
"""

EXAMPLES = r"""
- name: Archive a home
  campus.jupyterhub.home_archive:
    homes: /srv/campus-jupyterhub/nfs/homes
    dest: /srv/campus-jupyterhub/archive
    accounts: [{account: alice, uid: 100000}]
"""

RETURN = r"""
homes:
  description: >-
    What became of each home, by C(account): C(state) is V(absent), V(current), V(archived) or V(deleted), and
    C(archive) the name of its last archive, empty if it has none.
  type: list
  elements: dict
  returned: success
needed:
  description: Bytes that the archives may take at most.
  type: int
  returned: success
free:
  description: Bytes that are free where the archives are.
  type: int
  returned: success
"""

import calendar  # noqa: E402 - Ansible reads the documentation above it
import contextlib  # noqa: E402
import fcntl  # noqa: E402
import hashlib  # noqa: E402
import os  # noqa: E402
import pathlib  # noqa: E402
import re  # noqa: E402
import stat  # noqa: E402
import subprocess  # noqa: E402
import time  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

# The users' files come first: whoever works on the storage should not notice.
TAR = [
    *("nice", "-n", "19", "tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls", "--sparse"),
    # Escaped, a name is one line, whatever is in it.
    *("--one-file-system", "--atime-preserve=system", "--quoting-style=escape"),
]
# Without the times that change when a file is archived, or that nobody can set.
CREATE = [*TAR, "--create", "--format=posix", "--pax-option=delete=atime,delete=ctime"]
# What an entry takes in an archive at most besides its content.
ENTRY_BYTES = 2048
# An archive's name has the second in which it was begun. Nothing in the home is younger than so many seconds
# then, so that later changes, whose times are a few milliseconds coarse, are told from those before.
QUIET_SECONDS = 2
DATE = "%Y%m%dT%H%M%SZ"
# What `tar --compare` says after a name; it lists the names of what is the same as well.
DIFFERENCE = re.compile(r".*: ([A-Z].* differs?|Not linked to .*)")


class ArchiveError(Exception):
    """A home is left as it is; the message is a sentence that says why."""


class Measure:
    """What there is in a home.

    Attributes:
        entries: Number of files, directories and links, without sockets, which no archive can hold.
        size: Bytes that an archive may take at most.
        changed: When anything in it changed last. Nobody can set that time.
    """

    def __init__(self, home):
        """Look at everything in a home.

        Raises:
            ArchiveError: something cannot be read, or another file system is mounted in it.
        """
        # `find`, as `tar` and `rm`, goes down any number of directories without following a link.
        lines = run(["find", "-P", str(home), "-printf", r"%D %y %C@ %b %i %n\n"]).splitlines()
        self.entries, self.size, self.changed = 0, 0, 0.0
        device, linked = lines[0].split()[0], set()
        for line in lines:
            its_device, kind, changed, blocks, inode, links = line.split()
            if its_device != device:
                raise ArchiveError(f"Another file system is mounted in {home}.")
            self.changed = max(self.changed, float(changed))
            if kind == "s":
                continue
            self.entries += 1
            self.size += ENTRY_BYTES
            if inode not in linked:
                self.size += int(blocks) * 512
            if int(links) > 1:
                linked.add(inode)


def run(command, **options):
    """Run a command, and return what it prints.

    Raises:
        ArchiveError: it fails.
    """
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},
        check=False,
        **options,
    )
    if done.returncode:
        said = [line for line in (done.stdout or "").splitlines() if DIFFERENCE.fullmatch(line)]
        said += done.stderr.splitlines() or [f"{command[0]} ended with exit code {done.returncode}"]
        first = said[0] if len(said[0]) < 300 else f"{said[0][:100]} … {said[0][-100:]}"
        raise ArchiveError(f"{first}{f' (and {len(said) - 1} more)' if len(said) > 1 else ''}.")
    return done.stdout


def sync(path):
    """Bring a file, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path):
    """Return a file's SHA-256 digest."""
    found = hashlib.sha256()
    with pathlib.Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


class Home:
    """A home and its archives."""

    def __init__(self, homes, dest, account, uid):
        """Look for the home.

        Raises:
            ArchiveError: something is there that is not this account's directory.
        """
        self.path = pathlib.Path(homes, account)
        self.dest = pathlib.Path(dest)
        self.account = account
        # No account's name begins with a dot.
        self.removed = self.path.with_name(f".{account}.removed")
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            self.there = False
            return
        self.there = True
        if not stat.S_ISDIR(found.st_mode):
            raise ArchiveError(f"{self.path} is no directory.")
        if found.st_uid != uid:
            raise ArchiveError(f"{self.path} belongs to UID {found.st_uid}, but the account to UID {uid}.")

    def archives(self, suffix=".tar.gz"):
        """Return the archives of this home, or the files of another suffix beside them, oldest first."""
        pattern = re.compile(rf"{re.escape(self.account)}-\d{{8}}T\d{{6}}Z{re.escape(suffix)}")
        with contextlib.suppress(FileNotFoundError):
            return sorted(path for path in self.dest.iterdir() if pattern.fullmatch(path.name))
        return []

    def last(self):
        """Return the last archive, None if there is none."""
        return next(reversed(self.archives()), None)

    def is_archived(self, measure):
        """Tell whether nothing in the home has changed since the last archive was begun."""
        last = self.last()
        if last is None:
            return False
        date = last.name[len(self.account) + 1 :].removesuffix(".tar.gz")
        return measure.changed < calendar.timegm(time.strptime(date, DATE)) - 1

    def archive(self):
        """Write a new archive.

        Raises:
            ArchiveError: it cannot be written, or is not what is in the home.
        """
        # What an interrupted run has left.
        for part in self.archives(".tar.gz.part"):
            part.with_suffix(".sha256").unlink(missing_ok=True)
            part.unlink()
        measure = Measure(self.path)
        time.sleep(min(max(measure.changed + QUIET_SECONDS - time.time(), 0), QUIET_SECONDS))
        name = f"{self.account}-{time.strftime(DATE, time.gmtime())}.tar.gz"
        part = self.dest / f"{name}.part"
        try:
            with create(part) as file:
                command = [*CREATE, "--use-compress-program=gzip -1", "--file=-"]
                run([*command, f"--directory={self.path.parent}", "--", self.account], stdout=file)
                os.fsync(file.fileno())
            self.compare(part)
        except (ArchiveError, OSError):
            # Of no use, and perhaps what has filled the disk.
            part.unlink(missing_ok=True)
            raise
        # The checksum first: an archive that has its name has its checksum.
        with create(part.with_suffix(".sha256")) as file:
            file.write(f"{digest(part)}  {name}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        part.rename(self.dest / name)
        sync(self.dest)

    def compare(self, archive):
        """Make sure that an archive has all that is in the home, and nothing else.

        Raises:
            ArchiveError: there is a difference.
        """
        command = [*TAR, "--compare", "--verbose", "--gzip", f"--file={archive}"]
        same = run([*command, f"--directory={self.path.parent}"]).splitlines()
        # Everything in the archive is in the home as well; if it is as many, it is all.
        entries = Measure(self.path).entries
        if len(same) != entries:
            raise ArchiveError(f"{self.path} has {entries} entries and {archive} has {len(same)}.")

    def delete(self):
        """Remove the home.

        Raises:
            ArchiveError: it is not what is in its last archive.
        """
        if self.removed.is_dir():
            run(["rm", "--recursive", "--force", "--one-file-system", "--", str(self.removed)])
        if not self.there:
            return
        last = self.last()
        if last is None:
            raise ArchiveError(f"{self.path} has no archive.")
        checksum = last.with_name(f"{last.name}.sha256").read_text(encoding="utf-8").split()
        if checksum != [digest(last), last.name]:
            raise ArchiveError(f"{last} is not what its checksum says.")
        self.compare(last)
        if not self.is_archived(Measure(self.path)):
            raise ArchiveError(f"{self.path} has changed since it was archived in {last}.")
        # In one step, so that half a home is never taken for one; the next run does the rest if need be.
        self.path.rename(self.removed)
        sync(self.path.parent)
        run(["rm", "--recursive", "--force", "--one-file-system", "--", str(self.removed)])


def create(path):
    """Open a new file that only root may read."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def free_bytes(path):
    """Return how much may be written where a directory is, or will be."""
    path = pathlib.Path(path)
    while not path.exists():
        path = path.parent
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


@contextlib.contextmanager
def alone(dest):
    """Keep another run, which an interrupted one may have left behind, from the same archives.

    Raises:
        ArchiveError: there is one.
    """
    descriptor = os.open(pathlib.Path(dest, ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ArchiveError("Another run archives homes at this moment.") from None
    finally:
        os.close(descriptor)


def work(homes, dest, accounts, spare, check):
    """Do what is asked.

    Returns:
        dict: the module's result.

    Raises:
        ArchiveError: it cannot be done.
        OSError: a file cannot be read or written.
    """
    plans, needed = [], 0
    for one in accounts:
        home = Home(homes, dest, one["account"], one["uid"])
        due = False
        if home.there and (one["archive"] or one["delete"]):
            measure = Measure(home.path)
            due = not home.is_archived(measure)
            if due and not one["archive"]:
                raise ArchiveError(
                    f"{home.path} has {'changed since its last archive' if home.last() else 'no archive'}."
                )
            needed += measure.size if due else 0
        plans.append((home, due, one["delete"] and (home.there or home.removed.is_dir())))
    free = free_bytes(dest)
    if needed and needed + (spare << 20) > free:
        raise ArchiveError(
            f"The archives may take {needed >> 20} MiB, and {spare} MiB have to stay free, but only "
            f"{free >> 20} MiB are free in {dest}."
        )
    changed = any(due or delete for _, due, delete in plans)
    if changed and not check:
        with alone(dest):
            for home, due, delete in plans:
                if due:
                    home.archive()
                if delete:
                    home.delete()
    homes = []
    for home, due, delete in plans:
        state = "deleted" if delete else "archived" if due else "current" if home.there else "absent"
        last = home.last()
        homes.append({"account": home.account, "state": state, "archive": last.name if last else ""})
    return {"changed": changed, "needed": needed, "free": free, "homes": homes}


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "homes": {"type": "path", "required": True},
            "dest": {"type": "path", "required": True},
            "accounts": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "account": {"type": "str", "required": True},
                    "uid": {"type": "int", "required": True},
                    "archive": {"type": "bool", "default": True},
                    "delete": {"type": "bool", "default": False},
                },
            },
            "spare": {"type": "int", "default": 1024},
        },
        supports_check_mode=True,
    )
    asked = module.params
    try:
        result = work(asked["homes"], asked["dest"], asked["accounts"], asked["spare"], module.check_mode)
    except ArchiveError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}.")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
