"""Accounts of the storage: gives every name of the directory a UID, a GID, groups and a home, once.

The only store is a pair of files in the format of libnss-extrausers, which the NFS server's container reads
as well, so that an account is real to it (``id alice``) as soon as it is written here:

``passwd``
    ``account:x:uid:gid:username:/homes/account:/usr/sbin/nologin``, where ``username`` is percent-encoded.
    Lines are only ever appended, but by renumber.py, which replaces the file (write, fsync, rename).
``group``
    ``name:info:gid:member``, one line for the group itself (no member) and one more for each membership;
    ``info`` is ``x``, or the percent-encoded name if the group's line cannot be called that. glibc collects a
    user's groups from all lines, so joining a group is one appended line however large the group is;
    ``getent group NAME`` shows the first line only. Leaving a group replaces the file (write, fsync, rename).

``renumber/account`` is a journal of renumber.py: the account waits, and the numbers to come are taken.

``locked/account`` is an empty file that keeps the user from starting servers (lock.py, playbooks/users.yml).

Rules of that format, from libnss-extrausers 0.6 (passwd.c, group.c): ids below 500 are ignored, one
malformed line makes all later ones unreadable, and a line must end in a newline. NFS-Ganesha's first try has
a buffer of 1,024 bytes, so lines stay shorter than that.

Requests that arrive together are written together, with one fsync per file (group commit). All of it happens
in one thread: nobody is told of an account that is not on the disk yet.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import fcntl
import hashlib
import hmac
import json
import logging
import math
import os
import re
import stat
import struct
import time
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from urllib.parse import quote, unquote

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

log = logging.getLogger("accounts")

HOMES = "/homes"
SHELL = "/usr/sbin/nologin"

# Portable names of POSIX 3.437, lower case only, within the 32 bytes of utmp.
PORTABLE = re.compile(r"[a-z_][a-z0-9_.-]{0,31}")
# What derived names end in. A user who is really called so gets a derived name too: otherwise somebody could
# be named like somebody else's account.
DERIVED = re.compile(r"-[0-9a-f]{12}")
MAX_NAME_BYTES = 255
MAX_GROUPS = 1000

FAILED = "The accounts service failed; its log says why."

# Below 1000 are system accounts; 65534 is nobody, 65535 was (uid_t)-1; above 2^31-1 programs disagree about
# the sign.
MIN_ID = 1000
MAX_ID = 2**31 - 1
SPECIAL_IDS = frozenset({65534, 65535})

# System names of Debian and of this cluster's images that the accounts container itself may lack.
RESERVED = frozenset(
    {
        *(
            "root",
            "daemon",
            "bin",
            "sys",
            "sync",
            "games",
            "man",
            "lp",
            "mail",
            "news",
            "uucp",
            "proxy",
            "www-data",
        ),
        *(
            "backup",
            "list",
            "irc",
            "gnats",
            "nobody",
            "nogroup",
            "_apt",
            "adm",
            "tty",
            "disk",
            "kmem",
            "dialout",
        ),
        *(
            "fax",
            "voice",
            "cdrom",
            "floppy",
            "tape",
            "sudo",
            "audio",
            "dip",
            "operator",
            "src",
            "shadow",
            "utmp",
        ),
        *("video", "sasl", "plugdev", "staff", "users", "input", "sgx", "kvm", "render", "crontab", "netdev"),
        *(
            "messagebus",
            "sshd",
            "docker",
            "wheel",
            "polkitd",
            "statd",
            "postgres",
            "openldap",
            "haproxy",
            "caddy",
        ),
        *(
            "nginx",
            "ganesha",
            "jupyterhub",
            "nbbuild",
            "systemd-network",
            "systemd-resolve",
            "systemd-timesync",
        ),
    }
)


class RefusedError(Exception):
    """A request that is answered with a reason instead of an account."""

    def __init__(self, status: int, reason: str) -> None:
        """Takes the HTTP status and one sentence that a user can pass on."""
        super().__init__(reason)
        self.status = status
        self.reason = reason


def unavailable(what: str, error: OSError) -> RefusedError:
    """Returns the refusal for storage that does not work: 503 with the system's own words."""
    return RefusedError(503, f"{what}: {os.strerror(error.errno) if error.errno else error}.")


@dataclass(frozen=True)
class Course:
    """A course, as far as the storage is concerned."""

    name: str
    shared: bool = False
    nbgrader: bool = False

    @property
    def students(self) -> str:
        """Group of the students."""
        return f"nbgrader-{self.name}"

    @property
    def graders(self) -> str:
        """Group of the graders."""
        return f"formgrade-{self.name}"

    @property
    def members(self) -> str:
        """Group of both."""
        return f"course-{self.name}"

    def directories(self) -> list[tuple[str, str, int]]:
        """Lists the directories of the course: path below the exports, group, mode; parents first.

        Nodes mount as nobody in particular, so what is mounted has to lie in directories that all may enter.
        A file has one group: where graders write and students read, the students are the others, kept apart
        from everybody else by the directory above.
        """
        places = [
            (f"courses/{self.name}", self.graders, 0o751),
            (f"courses/{self.name}/material", self.members, 0o2770),
        ]
        if self.shared:
            places.append((f"courses/{self.name}/shared", self.members, 0o2770))
        if self.nbgrader:
            places += [
                (f"courses/{self.name}/grading", self.graders, 0o2770),
                (f"exchange/{self.name}", self.members, 0o750),
                (f"exchange/{self.name}/outbound", self.graders, 0o2775),
                # Of boxes, one for each student. Nobody but graders can list them.
                (f"exchange/{self.name}/inbound", self.graders, 0o751),
                # Of files with names that only the submission's author can know.
                (f"exchange/{self.name}/feedback", self.graders, 0o2771),
            ]
        return places

    def box(self, account: str) -> str:
        """Path of the directory in which a student hands in, below the exports."""
        return f"exchange/{self.name}/inbound/{account}"


@dataclass(frozen=True)
class Settings:
    """What the service is told: each field is an option ``--some-field`` and ``ACCOUNTS_SOME_FIELD``."""

    homes_dir: str = field(default="/homes", metadata={"help": "directory of the homes, as mounted here"})
    state_dir: str = field(default="/var/lib/extrausers", metadata={"help": "directory of passwd and group"})
    marker: str = field(
        default=".campus-storage",
        metadata={"help": "file in homes_dir that tells the storage from an empty mount point"},
    )
    token_file: str = field(
        default="/run/secrets/accounts_token", metadata={"help": "file with the bearer token of the clients"}
    )
    host: str = field(
        default="0.0.0.0",  # noqa: S104 - in a container, whose networks say who can connect
        metadata={"help": "address to listen on"},
    )
    port: int = field(default=8080, metadata={"help": "port to listen on"})
    nfs_address: str = field(
        default="",
        metadata={"help": "NFS server to ask before each answer: HOST:PORT or a socket's path; empty: none"},
    )
    primary_group: str = field(
        default="private", metadata={"help": "private, or role: the first of role_groups that the user is in"}
    )
    role_groups: str = field(
        default="students,teachers",
        metadata={"help": "groups that exist from the start, in the order of their GIDs"},
    )
    uid_min: int = field(default=100000, metadata={"help": "first UID that is given out"})
    uid_max: int = field(default=999999, metadata={"help": "last UID that is given out"})
    gid_min: int = field(default=20001, metadata={"help": "first GID of role and course groups"})
    gid_max: int = field(default=59999, metadata={"help": "last GID of role and course groups"})
    courses: str = field(
        default="[]",
        metadata={"help": "courses as JSON: a list of {name, shared, nbgrader}"},
    )
    exports_dir: str = field(
        default="/exports",
        metadata={"help": "directory of the exports courses and exchange, as mounted here"},
    )
    group_expiration: int = field(
        default=0, metadata={"help": "seconds for which the NFS server remembers a user's former groups"}
    )
    system_files: str = field(
        default="/etc/passwd,/etc/group", metadata={"help": "files whose names are refused to users"}
    )

    def __post_init__(self) -> None:
        """Checks rules across settings.

        Raises:
            ValueError: a setting contradicts another, or is none of its possible values.
        """
        if self.primary_group not in ("private", "role"):
            raise ValueError(f"primary_group is {self.primary_group!r}, but must be private or role")
        for low, high in ((self.uid_min, self.uid_max), (self.gid_min, self.gid_max)):
            if not MIN_ID <= low <= high <= MAX_ID:
                raise ValueError(f"the range {low} to {high} is empty or not within {MIN_ID} to {MAX_ID}")
        if self.uid_min <= self.gid_max and self.gid_min <= self.uid_max:
            raise ValueError("the ranges of UIDs and GIDs overlap, but a private group has its user's UID")
        if self.nfs_address and not re.fullmatch(r"/.+|.+:\d+", self.nfs_address):
            raise ValueError(f"nfs_address is {self.nfs_address!r}, but must be HOST:PORT or a socket's path")
        try:
            names = [course.name for course in self.all_courses]
        except TypeError as error:
            raise ValueError(
                f"courses is {self.courses!r}, but must be a list of courses: {error}"
            ) from error
        if not all(re.fullmatch(r"[a-z][a-z0-9_-]*", name) for name in names):
            raise ValueError(f"courses is {self.courses!r}, with a name that cannot be a directory's")

    @property
    def all_courses(self) -> list[Course]:
        """What courses says."""
        return [Course(**course) for course in json.loads(self.courses)]

    @property
    def roles(self) -> list[str]:
        """Names in role_groups."""
        return [clean_name(name.strip(), "group") for name in self.role_groups.split(",") if name.strip()]

    @classmethod
    def from_arguments(cls, arguments: list[str] | None = None) -> Settings:
        """Reads the command line, and the environment for what it does not say."""
        parser = argparse.ArgumentParser(prog="accounts.py", description=(__doc__ or "").splitlines()[0])
        for one in fields(cls):
            variable = f"ACCOUNTS_{one.name.upper()}"
            parser.add_argument(
                f"--{one.name.replace('_', '-')}",
                type=type(one.default),
                default=os.environ.get(variable, one.default),
                help=f"{one.metadata['help']} (or {variable}; default: {one.default!r})",
            )
        options = parser.parse_args(arguments)
        try:
            return cls(**vars(options))
        except ValueError as error:
            parser.error(str(error))


# --- names


def clean_name(name: object, kind: str = "user") -> str:
    """Brings a name to the one form in which it is stored and compared.

    Args:
        name: Name as the client sent it.
        kind: What it names, for the refusal.

    Returns:
        The name in Unicode's composed form (NFC): other forms of the same characters are the same name.

    Raises:
        RefusedError: it is no text, empty, too long, or has characters that nobody can see.
    """
    if not isinstance(name, str):
        raise RefusedError(400, f"A {kind} name must be text.")
    name = unicodedata.normalize("NFC", name)
    if not name.strip():
        raise RefusedError(400, f"An empty {kind} name cannot be used.")
    categories = {unicodedata.category(char) for char in name}
    if any(category[0] == "C" or category in ("Zl", "Zp") for category in categories):
        raise RefusedError(400, f"A {kind} name with control or invisible characters cannot be used.")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise RefusedError(400, f"A {kind} name longer than {MAX_NAME_BYTES} bytes cannot be used.")
    return name


def derived_name(name: str) -> str:
    """Returns a portable name for any name: a readable part, and a digest that tells it from all others."""
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9_.]+", "-", ascii_name).strip("-.") or "user"
    if not ("a" <= slug[0] <= "z"):
        slug = f"u{slug}"
    return f"{slug[:19].rstrip('-.')}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def retired_name(number: int) -> str:
    """Returns the name of the group that keeps a number which was an account's from being given to others."""
    return f"retired-{number}"


def portable_name(name: str, taken: Callable[[str], bool]) -> str:
    """Returns the name for a line: the name itself if it is portable and free, else a derived one."""
    if PORTABLE.fullmatch(name) and not DERIVED.fullmatch(name[-13:]) and not taken(name):
        return name
    return derived_name(name)


def clean_id(value: object, what: str) -> int | None:
    """Checks a UID or GID from a request.

    Raises:
        RefusedError: it is no number, or not one that a person may have.
    """
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise RefusedError(400, f"The {what} must be a whole number.")
    if not MIN_ID <= value <= MAX_ID or value in SPECIAL_IDS:
        raise RefusedError(400, f"The {what} {value} is the system's or out of range and cannot be used.")
    return value


# --- the store


@dataclass(frozen=True, slots=True)
class Account:
    """One line of passwd."""

    username: str
    account: str
    uid: int
    gid: int

    @property
    def home(self) -> str:
        """Path of the home on the NFS server."""
        return f"{HOMES}/{self.account}"

    def line(self) -> str:
        """The line in passwd."""
        user = quote(self.username, safe="")
        return f"{self.account}:x:{self.uid}:{self.gid}:{user}:{self.home}:{SHELL}\n"


@dataclass(frozen=True, slots=True)
class Group:
    """A role or course group."""

    name: str
    line_name: str
    gid: int

    def line(self, member: str = "") -> str:
        """A line in group: of the group itself, or of one membership."""
        info = "x" if self.name == self.line_name else quote(self.name, safe="")
        return f"{self.line_name}:{info}:{self.gid}:{member}\n"


def retired_group(account: Account) -> Group:
    """Returns the group that keeps an account's number from being given to others, and says whose it was."""
    name = retired_name(account.uid)
    return Group(f"{name} {account.account}", name, account.uid)


@dataclass(frozen=True, slots=True)
class Move:
    """A journal of renumber.py: the numbers that an account had, and those that it is about to have."""

    account: str
    uid: int
    gid: int
    new_uid: int
    new_gid: int


@dataclass(frozen=True, slots=True)
class Request:
    """What a client wants to be true of one account; ``None`` leaves it as it is."""

    username: str
    groups: tuple[str, ...] | None = None
    uid: int | None = None
    gid: int | None = None

    @classmethod
    def parse(cls, username: str, body: object) -> Request:
        """Checks a request's body.

        Raises:
            RefusedError: a field is unknown or has a value that it cannot have.
        """
        if not isinstance(body, dict):
            raise RefusedError(400, "The body must be a JSON object.")
        unknown = sorted(body.keys() - {"groups", "uid", "gid"})
        if unknown:
            raise RefusedError(400, f"The body has the unknown field {unknown[0]!r}.")
        groups = body.get("groups")
        if groups is not None:
            if not isinstance(groups, list) or len(groups) > MAX_GROUPS:
                raise RefusedError(400, f"The groups must be a list of at most {MAX_GROUPS} names.")
            groups = tuple(dict.fromkeys(clean_name(group, "group") for group in groups))
        return cls(
            clean_name(username), groups, clean_id(body.get("uid"), "UID"), clean_id(body.get("gid"), "GID")
        )


class Index:
    """The two files in memory."""

    def __init__(self, settings: Settings, passwd: bytes = b"", group: bytes = b"") -> None:
        """Reads both files; a line that a crash cut short (no newline) is left out.

        Raises:
            RefusedError: a line is malformed or contradicts another; to go on could give a UID twice.
        """
        self.by_username: dict[str, Account] = {}
        self.by_account: dict[str, Account] = {}
        self.by_uid: dict[int, Account] = {}
        self.primary: dict[int, Account] = {}
        self.groups: dict[str, Group] = {}
        self.by_gid: dict[int, Group] = {}
        self.group_lines: set[str] = set()
        self.private: set[str] = set()
        self.memberships: dict[str, set[int]] = {}
        self.moves: list[Move] = []
        self._next_uid = settings.uid_min
        self._next_gid = settings.gid_min
        self._settings = settings
        for number, line in self._lines(passwd):
            try:
                account, _, uid, gid, username, _, _ = line.split(":")
                found = Account(unquote(username) or account, account, int(uid), int(gid))
                if (
                    account in self.by_account
                    or found.username in self.by_username
                    or found.uid in self.by_uid
                ):
                    raise ValueError
            except ValueError:
                raise RefusedError(
                    503, f"Line {number} of the passwd file is malformed or there twice."
                ) from None
            self.add_account(found)
        for number, line in self._lines(group):
            try:
                name, info, gid_text, members = line.split(":")
                gid_number = int(gid_text)
            except ValueError:
                raise RefusedError(503, f"Line {number} of the group file is malformed.") from None
            owner = self.by_account.get(name)
            if owner and owner.uid == gid_number:
                self.private.add(name)
                continue
            if gid_number not in self.by_gid:
                self.add_group(Group(name if info in ("x", "") else unquote(info), name, gid_number))
            for member in filter(None, members.split(",")):
                self.memberships.setdefault(member, set()).add(gid_number)

    @staticmethod
    def _lines(content: bytes) -> Iterator[tuple[int, str]]:
        complete = content[: content.rfind(b"\n") + 1].decode(errors="replace")
        for number, line in enumerate(complete.split("\n"), 1):
            if line and not line.startswith("#"):
                yield number, line

    def add_account(self, account: Account) -> None:
        """Adds an account."""
        self.by_username[account.username] = account
        self.by_account[account.account] = account
        self.by_uid[account.uid] = account
        self.primary.setdefault(account.gid, account)

    def add_group(self, group: Group) -> None:
        """Adds a role or course group."""
        self.groups[group.name] = group
        self.by_gid[group.gid] = group
        self.group_lines.add(group.line_name)

    def _free(self, number: int) -> bool:
        return (
            number not in self.by_uid
            and number not in self.primary
            and number not in self.by_gid
            and all(number not in (move.new_uid, move.new_gid) for move in self.moves)
        )

    def new_uid(self) -> int:
        """Returns the next UID that neither a user nor a group ever had."""
        while not self._free(self._next_uid) or self._next_uid in SPECIAL_IDS:
            self._next_uid += 1
        if self._next_uid > self._settings.uid_max:
            raise RefusedError(503, "All UIDs of the configured range are given out.")
        return self._next_uid

    def new_gid(self) -> int:
        """Returns the next GID for a role or course group."""
        while not self._free(self._next_gid) or self._next_gid in SPECIAL_IDS:
            self._next_gid += 1
        if self._next_gid > self._settings.gid_max:
            raise RefusedError(503, "All GIDs of the configured range are given out.")
        return self._next_gid

    def check_free(self, name: str, uid: int, gid: int) -> None:
        """Makes sure that nobody else has the numbers of an account.

        Args:
            name: The account.
            uid: Its UID.
            gid: The GID of its primary group, which may be a group that is there only if it is nobody's own.

        Raises:
            RefusedError: somebody has.
        """
        owner = self.by_uid.get(uid)
        if owner and owner.account != name:
            raise RefusedError(409, f"The UID {uid} belongs to the account {owner.account}.")
        for number in (uid, gid):
            if number in self.by_gid and self.by_gid[number].line_name == retired_name(number):
                raise RefusedError(409, f"The number {number} was an account's once and is not used again.")
        private_of = self.by_uid.get(gid)
        if private_of and private_of.gid == gid and private_of.account != name:
            raise RefusedError(
                409, f"The GID {gid} is the private group of the account {private_of.account}."
            )
        sharer = self.primary.get(gid)
        if gid == uid and (gid in self.by_gid or (sharer and sharer.account != name)):
            raise RefusedError(
                409, f"The GID {gid} is in use already and cannot be the private group of {name}."
            )
        for move in self.moves:
            # as above, two may share a group that is nobody's own
            if move.account != name and (uid in (move.new_uid, move.new_gid) or gid == move.new_uid):
                raise RefusedError(
                    409,
                    f"{name} cannot have UID {uid} and GID {gid}: the account {move.account} is being moved "
                    f"to UID {move.new_uid} and GID {move.new_gid}.",
                )

    def groups_of(self, account: Account) -> dict[str, int]:
        """Returns the role and course groups of an account, the primary one included."""
        gids = self.memberships.get(account.account, set()) | {account.gid}
        return {self.by_gid[gid].name: gid for gid in sorted(gids) if gid in self.by_gid}

    def describe(self, account: Account) -> dict[str, object]:
        """Returns what the two files say of an account."""
        return {
            "username": account.username,
            "account": account.account,
            "uid": account.uid,
            "gid": account.gid,
            "groups": self.groups_of(account),
            "home": account.home,
        }


class Store:
    """The files on the disk, their index, and the homes."""

    def __init__(self, settings: Settings) -> None:
        """Takes the settings; files are read when they are needed."""
        self.settings = settings
        self.passwd = Path(settings.state_dir, "passwd")
        self.group = Path(settings.state_dir, "group")
        self._lock_file = Path(settings.state_dir, ".lock")
        self._roles = settings.roles
        self._courses = settings.all_courses
        self._index = Index(settings)
        self._seen: object = None
        self._reserved = set(RESERVED)
        for path in filter(None, settings.system_files.split(",")):
            with contextlib.suppress(FileNotFoundError):
                lines = Path(path).read_text(encoding="utf-8").splitlines()
                self._reserved.update(line.split(":", 1)[0] for line in lines)

    @property
    def _course_groups(self) -> list[str]:
        return [name for one in self._courses for name in (one.students, one.graders, one.members)]

    # -- reading

    def index(self) -> Index:
        """Returns the index, read anew if another process changed the files.

        Raises:
            RefusedError: the files cannot be read or are malformed.
        """
        try:
            if self._signature() != self._seen:
                # In this order: what is appended between the two reads is noticed at the next request.
                seen = self._signature()
                self._index = Index(self.settings, self.passwd.read_bytes(), self.group.read_bytes())
                self._seen = seen
        except OSError as error:
            raise unavailable("The account files cannot be read", error) from error
        return self._index

    def _signature(self) -> object:
        found = (self.passwd.stat(), self.group.stat())
        return tuple((one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for one in found)

    def satisfied(self, index: Index, request: Request) -> Account | None:
        """Returns the account if all that a request wants is written already."""
        account = index.by_username.get(request.username)
        if account is None:
            return None
        self._check_usable(account, request)
        if account.uid == account.gid and account.account not in index.private:
            return None
        if request.groups is not None and set(index.groups_of(account)) - self._kept(index, account) != set(
            request.groups
        ) - self._kept(index, account):
            return None
        return account

    @staticmethod
    def _kept(index: Index, account: Account) -> set[str]:
        """The primary group's name, which no request can take away."""
        return {index.by_gid[account.gid].name} if account.gid in index.by_gid else set()

    def journal(self, account: Account) -> Path:
        """Where renumber.py keeps what it is about to do; the account waits as long as it is there."""
        return Path(self.settings.state_dir, "renumber", account.account)

    def moves(self) -> list[Move]:
        """Reads the journals of renumber.py.

        Raises:
            RefusedError: one cannot be read; to go on could give a UID twice.
        """
        found = []
        directory = Path(self.settings.state_dir, "renumber")
        try:
            for path in directory.iterdir() if directory.exists() else ():
                # A name with a dot is one that is being written; one that is gone was finished just now.
                if not path.name.startswith("."):
                    with contextlib.suppress(FileNotFoundError):
                        found.append(Move(path.name, **json.loads(path.read_text(encoding="utf-8"))))
        except OSError as error:
            raise unavailable("The journals of renumber.py cannot be read", error) from error
        except (TypeError, ValueError):
            raise RefusedError(503, f"The journal renumber/{path.name} is malformed.") from None
        return found

    def lock_file(self, account: Account) -> Path:
        """The empty file that locks the account for as long as it is there.

        Not the shell's field of passwd: lines there are only ever appended, and renumber.py writes them anew.
        To make or to remove one file is a single step that a crash cannot halve, needs nobody to wait for
        anybody, and is seen by the next request.
        """
        return Path(self.settings.state_dir, "locked", account.account)

    def locked(self, account: Account) -> str:
        """Since which day the account is locked; empty if it is not."""
        try:
            return time.strftime("%Y-%m-%d", time.gmtime(self.lock_file(account).stat().st_mtime))
        except FileNotFoundError:
            return ""

    def describe(self, account: Account) -> dict[str, object]:
        """Returns an account as the API shows it."""
        return self.index().describe(account) | {"locked": bool(self.locked(account))}

    def check_not_moving(self, account: Account) -> None:
        """Makes sure that an account is not on its way to other numbers.

        Raises:
            RefusedError: it is.
        """
        if self.journal(account).exists():
            raise RefusedError(
                409, f"The files of the account {account.account} are being moved to another UID."
            )

    def _check_usable(self, account: Account, request: Request) -> None:
        if since := self.locked(account):
            raise RefusedError(
                403,
                f"The account {account.account} is locked since {since}; an administrator can unlock it.",
            )
        self.check_not_moving(account)
        for what, own, wanted in (("UID", account.uid, request.uid), ("GID", account.gid, request.gid)):
            if wanted is not None and wanted != own:
                raise RefusedError(
                    409,
                    f"The account {account.account} has the {what} {own} but the directory says {wanted}; "
                    "playbooks/renumber.yml moves its files.",
                )

    # -- homes

    @contextlib.contextmanager
    def homes(self) -> Iterator[int]:
        """Opens the directory of homes.

        Yields:
            Its file descriptor.

        Raises:
            RefusedError: the storage is not mounted, or is read-only.
        """
        try:
            descriptor = os.open(self.settings.homes_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            raise unavailable("The directory of the homes cannot be opened", error) from error
        try:
            try:
                os.stat(self.settings.marker, dir_fd=descriptor, follow_symlinks=False)
            except OSError as error:
                raise RefusedError(503, "The storage of the homes is not mounted.") from error
            if os.fstatvfs(descriptor).f_flag & os.ST_RDONLY:
                raise RefusedError(503, "The storage of the homes is read-only.")
            yield descriptor
        finally:
            os.close(descriptor)

    @staticmethod
    def has_home(homes: int, account: Account) -> bool:
        """Tells whether the home is there.

        Raises:
            RefusedError: something is there that is not this account's directory. It is left alone.
        """
        try:
            found = os.stat(account.account, dir_fd=homes, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise unavailable(f"The home {account.home} cannot be read", error) from error
        if not stat.S_ISDIR(found.st_mode):
            raise RefusedError(409, f"The home {account.home} is there, but is no directory.")
        if found.st_uid != account.uid:
            raise RefusedError(
                409,
                f"The home {account.home} belongs to UID {found.st_uid}, but the account to {account.uid}.",
            )
        return True

    def make_home(self, homes: int, account: Account) -> None:
        """Makes a home unless it is there.

        Raises:
            RefusedError: it cannot be made, or the name is taken by something else.
        """
        if self.has_home(homes, account):
            return
        try:
            make_directory(homes, account.account, account.uid, account.gid, 0o700)
        except OSError as error:
            raise unavailable(f"The home {account.home} cannot be made", error) from error

    # -- courses

    def make_courses(self) -> None:
        """Makes the courses' directories that are missing; those that are there are the administrator's.

        Raises:
            RefusedError: one cannot be made.
        """
        index = self.index()
        for course in self._courses:
            for path, group, mode in course.directories():
                self._make_place(path, 0, index.groups[group].gid, mode)

    def make_boxes(self, index: Index, account: Account) -> None:
        """Makes the boxes of a student, one in each of his courses.

        What lies in one is the student's, and the graders' by its group.
        """
        mine = index.groups_of(account)
        for course in self._courses:
            if not (course.nbgrader and course.students in mine):
                continue
            gid = index.groups[course.graders].gid
            try:
                self._make_place(course.box(account.account), account.uid, gid, 0o2770)
            except RefusedError as refused:
                # Without a box nobody hands in; a start for anything else goes on.
                log.warning("%s in the course %s: %s", account.account, course.name, refused.reason)

    def _make_place(self, path: str, uid: int, gid: int, mode: int) -> None:
        parent, name = os.path.split(path)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        try:
            descriptor = os.open(Path(self.settings.exports_dir, parent), flags)
            try:
                if not exists(descriptor, name):
                    make_directory(descriptor, name, uid, gid, mode)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise unavailable(f"The directory /{path} cannot be made", error) from error

    # -- writing

    @contextlib.asynccontextmanager
    async def lock(self, timeout: float = 2.0) -> AsyncIterator[None]:
        """Keeps every other process from writing.

        Raises:
            RefusedError: another process holds the lock for longer than the timeout, or it cannot be taken.
        """
        try:
            descriptor = os.open(
                self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
        except OSError as error:
            raise unavailable("The account files cannot be locked", error) from error
        try:
            deadline = time.monotonic() + timeout
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise RefusedError(503, "Another process is writing the account files.") from None
                    await asyncio.sleep(0.01)
                except OSError as error:
                    raise unavailable("The account files cannot be locked", error) from error
            yield
        finally:
            os.close(descriptor)

    def write(self, requests: Iterable[Request]) -> list[tuple[Account, bool] | RefusedError]:
        """Makes all requests true, with one fsync per file. The caller holds the lock.

        Returns:
            For each request its account and whether it is new, or why it was refused.

        Raises:
            RefusedError: nothing could be written.
        """
        try:
            self._heal(self.passwd)
            self._heal(self.group)
        except OSError as error:
            raise unavailable("The account files cannot be written", error) from error
        index = self.index()
        # Each time: the index is read again only if the two files have changed.
        index.moves = self.moves()
        changes = _Changes()
        results: list[tuple[Account, bool] | RefusedError] = []
        with self.homes() as homes:
            # From here on the index is ahead of the disk: it is only kept if all goes well.
            self._seen = None
            for name in (*self._roles, *self._course_groups):
                self._group(index, changes, name)
            for request in requests:
                try:
                    results.append(self._apply(index, changes, request, homes))
                except RefusedError as refused:
                    results.append(refused)
            try:
                # Accounts first: one that a crash left without its groups gets them at its next request.
                self._append(self.passwd, "".join(changes.passwd))
                if changes.left:
                    self._replace_group(changes)
                self._append(self.group, "".join(changes.group))
                self._seen = self._signature()
            except OSError as error:
                raise unavailable("The account files cannot be written", error) from error
            for position, result in enumerate(results):
                if not isinstance(result, RefusedError):
                    try:
                        self.make_home(homes, result[0])
                        self.make_boxes(index, result[0])
                    except RefusedError as refused:
                        results[position] = refused
        return results

    def _apply(self, index: Index, changes: _Changes, request: Request, homes: int) -> tuple[Account, bool]:
        account = index.by_username.get(request.username)
        created = account is None
        if account is None:
            account = self._new_account(index, changes, request, homes)
        else:
            self._check_usable(account, request)
        if account.uid == account.gid and account.account not in index.private:
            index.private.add(account.account)
            changes.group.append(f"{account.account}:x:{account.gid}:\n")
        if request.groups is not None:
            wanted = {self._group(index, changes, name).gid for name in request.groups} - {account.gid}
            current = index.memberships.setdefault(account.account, set())
            for gid in sorted(wanted - current):
                changes.join(index.by_gid[gid], account.account)
            for gid in current - wanted:
                changes.leave(index.by_gid[gid], account.account)
            index.memberships[account.account] = wanted
        return account, created

    def _new_account(self, index: Index, changes: _Changes, request: Request, homes: int) -> Account:
        if request.username in self._reserved:
            raise RefusedError(400, f"The name {request.username!r} is the system's own and cannot be used.")
        name = portable_name(request.username, index.group_lines.__contains__)
        if name in index.by_account:
            raise RefusedError(409, f"The account {name} belongs to another name.")
        uid = index.new_uid() if request.uid is None else request.uid
        gid = request.gid
        if gid is None and self.settings.primary_group == "role":
            # Teachers come last: who is a student too (an assistant) is a teacher.
            role = next((role for role in reversed(self._roles) if role in (request.groups or ())), None)
            gid = index.groups[role].gid if role else None
        elif gid in index.by_gid:
            raise RefusedError(409, f"The GID {gid} belongs to the group {index.by_gid[gid].name}.")
        if gid is None:
            gid = uid
        index.check_free(name, uid, gid)
        account = Account(request.username, name, uid, gid)
        # A home that is somebody else's refuses the account before it is written.
        self.has_home(homes, account)
        index.add_account(account)
        changes.passwd.append(account.line())
        return account

    @staticmethod
    def _group(index: Index, changes: _Changes, name: str) -> Group:
        group = index.groups.get(name)
        if group is None:
            line_name = portable_name(name, lambda taken: taken in index.by_account or taken in RESERVED)
            group = Group(name, line_name, index.new_gid())
            index.add_group(group)
            changes.group.append(group.line())
        return group

    # -- bytes

    @staticmethod
    def _heal(path: Path) -> None:
        """Ends a file whose last line a crash cut short; nobody was ever told of that line."""
        with path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size == 0:
                return
            tail = b""
            position = size
            while position > 0 and b"\n" not in tail:
                position = max(0, position - 4096)
                file.seek(position)
                tail = file.read(size - position)
            start = position + tail.rfind(b"\n") + 1
            if start == size:
                return
            line = tail[tail.rfind(b"\n") + 1 :]
            if path.name == "passwd" and line.count(b":") == 6 and line.endswith(f":{SHELL}".encode()):
                # All of it is there: rather an editor that leaves out the last newline.
                file.seek(size)
                file.write(b"\n")
            else:
                log.warning("the last line of %s was cut short and is removed: %r", path, line)
                file.truncate(start)
            file.flush()
            os.fsync(file.fileno())

    @staticmethod
    def _append(path: Path, text: str) -> None:
        if not text:
            return
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            size = os.fstat(descriptor).st_size
            content = text.encode()
            try:
                if os.write(descriptor, content) != len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(descriptor)
            except OSError:
                # A full disk: what was written of it would be half a line.
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)

    def _replace_group(self, changes: _Changes) -> None:
        """Writes the group file without the memberships that ended; readers see the old or the new one."""
        lines = []
        defined = set()
        for line in self.group.read_text(encoding="utf-8").splitlines(keepends=True):
            parts = line.rstrip("\n").split(":")
            if len(parts) == 4 and parts[2] in changes.left:
                gone = changes.left[parts[2]]
                before = [member for member in parts[3].split(",") if member]
                after = [member for member in before if member not in gone]
                if parts[2] in defined and before and not after:
                    continue
                line = ":".join([*parts[:3], ",".join(after)]) + "\n"
            if len(parts) == 4:
                defined.add(parts[2])
            lines.append(line)
        replace_file(self.group, "".join(lines))

    def check_move(self, account: Account, uid: int, gid: int) -> None:
        """Makes sure that nobody else has, or is about to have, the numbers to which an account moves.

        Goes by the files without the account's own lines, which an interrupted move may have halved.

        Args:
            account: The account with its old numbers.
            uid: The new UID.
            gid: The new GID of its primary group.

        Raises:
            RefusedError: somebody has, or the files cannot be read.
        """
        own = re.compile(rf"^{re.escape(account.account)}:.*\n".encode(), re.MULTILINE)
        # the number that it has, and the new one if it once had that
        back = rf"{retired_name(uid)}:{retired_name(uid)}%20{re.escape(account.account)}"
        left = rf"{retired_name(account.uid)}:|{back}:"
        retired = re.compile(rf"^(?:{left}).*\n".encode(), re.MULTILINE)
        try:
            passwd, group = own.sub(b"", self.passwd.read_bytes()), own.sub(b"", self.group.read_bytes())
        except OSError as error:
            raise unavailable("The account files cannot be read", error) from error
        index = Index(self.settings, passwd, retired.sub(b"", group))
        index.moves = self.moves()
        index.check_free(account.account, uid, gid)

    def renumber(self, account: Account, uid: int, gid: int) -> None:
        """Gives an account other numbers. The caller holds the lock, and does it again after a crash.

        The old UID stays taken, as the GID of a group without members: what a backup brings back under it is
        nobody else's. Only the account itself may have it again.

        Args:
            account: The account with its old numbers.
            uid: The new UID.
            gid: The new GID of its primary group.

        Raises:
            OSError: a file cannot be written. Each is the old or the new one.
        """
        moved = Account(account.username, account.account, uid, gid)
        retired = retired_group(account).line()
        own = f"{account.account}:x:{account.uid}:\n"
        groups = self.group.read_text(encoding="utf-8").splitlines(keepends=True)
        if uid != account.uid:
            again = f"{retired_name(uid)}:"
            groups = [line for line in groups if line not in (own, retired) and not line.startswith(again)]
            groups.append(retired)
        private = f"{account.account}:x:{gid}:\n"
        if uid == gid and private not in groups:
            groups.append(private)
        replace_file(self.group, "".join(groups))
        lines = self.passwd.read_text(encoding="utf-8").splitlines(keepends=True)
        name = f"{account.account}:"
        replace_file(self.passwd, "".join(moved.line() if line.startswith(name) else line for line in lines))


def exists(directory: int, name: str) -> bool:
    """Tells whether there is something of a name in an open directory."""
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def make_directory(parent: int, name: str, uid: int, gid: int, mode: int) -> None:
    """Makes a directory that gets its name only when its owner and mode are right.

    So a crash leaves no half-made one. The unfinished one has a name that starts with a dot, as no account's
    and no course's does.

    Args:
        parent: File descriptor of the directory in which to make it.
        name: Its name.
        uid: Its owner.
        gid: Its group.
        mode: Its mode.

    Raises:
        OSError: it cannot be made.
    """
    unfinished = f".{name}.new"
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(unfinished, dir_fd=parent)
    os.mkdir(unfinished, 0o700, dir_fd=parent)
    descriptor = os.open(unfinished, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    try:
        os.fchown(descriptor, uid, gid)
        # Last: for the setgid bit of a group that is not this process's it takes CAP_FSETID.
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)
    os.rename(unfinished, name, src_dir_fd=parent, dst_dir_fd=parent)


def replace_file(path: Path, content: str) -> None:
    """Replaces a file; readers, and whoever comes after a crash, see the old or the new one.

    Raises:
        OSError: it cannot be written.
    """
    unfinished = path.with_name(f"{path.name}.new")
    with unfinished.open("w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Brings a directory's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Changes:
    """Lines that one batch appends, and memberships that it ends (by GID, as text)."""

    def __init__(self) -> None:
        """Starts without any."""
        self.passwd: list[str] = []
        self.group: list[str] = []
        self.left: dict[str, set[str]] = {}

    def join(self, group: Group, account: str) -> None:
        """Notes a new membership; the file loses memberships before it gains some."""
        line = group.line(account)
        if line not in self.group:
            self.group.append(line)

    def leave(self, group: Group, account: str) -> None:
        """Notes the end of a membership, of one noted a moment ago as well."""
        with contextlib.suppress(ValueError):
            self.group.remove(group.line(account))
        self.left.setdefault(str(group.gid), set()).add(account)


# --- the NFS server


class NfsProbe:
    """Asks the NFS server for nothing (procedure NULL of RFC 8881), the cheapest proof that it answers."""

    # RFC 5531: last fragment of 40 bytes; xid, CALL, RPC 2, program NFS, version 4, procedure 0, neither
    # credentials nor verifier.
    CALL = struct.pack(">11I", 0x80000028, 0x43414D50, 0, 2, 100003, 4, 0, 0, 0, 0, 0)
    # xid, REPLY, accepted, no verifier, success; behind the fragment's length.
    REPLY = struct.pack(">7I", 0x80000018, 0x43414D50, 1, 0, 0, 0, 0)

    def __init__(self, address: str, timeout: float = 2.0, keep: float = 1.0) -> None:
        """Takes where and how to ask.

        Args:
            address: HOST:PORT or the path of a socket; empty: every answer is "yes".
            timeout: Seconds until silence means no.
            keep: Seconds for which an answer holds; all requests within it share one question.
        """
        self.address = address
        self.timeout = timeout
        self.keep = keep
        self._asked: asyncio.Task[bool] | None = None
        self._until = 0.0

    async def check(self) -> None:
        """Returns if the server answers.

        Raises:
            RefusedError: it does not.
        """
        if not self.address:
            return
        if self._asked is None or (self._asked.done() and time.monotonic() > self._until):
            self._asked = asyncio.create_task(self._ask())
        if not await asyncio.shield(self._asked):
            raise RefusedError(503, "The NFS server does not answer; please try again in a minute.")

    async def _ask(self) -> bool:
        try:
            async with asyncio.timeout(self.timeout):
                if self.address.startswith("/"):
                    reader, writer = await asyncio.open_unix_connection(self.address)
                else:
                    host, _, port = self.address.rpartition(":")
                    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
                try:
                    writer.write(self.CALL)
                    if await reader.readexactly(len(self.REPLY)) == self.REPLY:
                        return True
                    raise OSError("a wrong answer")
                finally:
                    writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            log.warning("NFS server %s does not answer: %s", self.address, str(error) or "timeout")
            return False
        finally:
            self._until = time.monotonic() + self.keep


# --- HTTP


class Service:
    """The HTTP service."""

    # Seconds between two attempts at the courses' directories.
    RETRY = 10
    # How long a request waits for others to be written with it: much less than an fsync.
    GATHER = 0.002

    def __init__(self, settings: Settings, token: str) -> None:
        """Takes the settings and the bearer token of the clients."""
        self.store = Store(settings)
        self.nfs = NfsProbe(settings.nfs_address)
        self._token = token.encode()
        self._regrouped: dict[str, float] = {}  # when groups of an account changed, by its name
        self._waiting: list[tuple[Request, asyncio.Future[tuple[Account, bool]]]] = []
        self._writer: asyncio.Task[None] | None = None
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "accounts_requests",
            "Requests by method and status.",
            ["method", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "accounts_request_seconds", "Seconds from request to answer.", ["method"], registry=self.registry
        )
        self._created = Counter("accounts_created", "Accounts created.", registry=self.registry)
        self._batches = Counter("accounts_batches", "Writes of one or more requests.", registry=self.registry)
        self._known = Gauge("accounts_known", "Accounts that exist.", registry=self.registry)

    def app(self) -> web.Application:
        """Returns the aiohttp application."""
        app = web.Application(middlewares=[self._answer], client_max_size=256 * 1024)
        app.router.add_get("/accounts", self.get_all)
        app.router.add_get("/accounts/{username}", self.get)
        app.router.add_put("/accounts/{username}", self.put)
        app.router.add_get("/healthz", self.health)
        app.router.add_get("/metrics", self.metrics)
        app.cleanup_ctx.append(self._courses_made)
        return app

    async def _courses_made(self, _app: web.Application) -> AsyncIterator[None]:
        """Makes the courses' directories beside everything else."""
        making = asyncio.create_task(self._make_courses())
        yield
        making.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await making

    async def _make_courses(self) -> None:
        """Makes them as soon as the storage is there."""
        while self.store.settings.all_courses:
            try:
                async with self.store.lock():
                    # Nobody's request, but the groups are written.
                    self.store.write([])
                self.store.make_courses()
                return
            except RefusedError as refused:
                log.warning("the courses' directories have to wait: %s", refused.reason)
                await asyncio.sleep(self.RETRY)

    @web.middleware
    async def _answer(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Asks for the token, counts, and turns every error into JSON with a reason."""
        started = time.monotonic()
        headers: dict[str, str] = {}
        try:
            if request.path not in ("/healthz", "/metrics") and not self._authorised(request):
                headers["WWW-Authenticate"] = "Bearer"
                raise RefusedError(401, "The bearer token is missing or wrong.")
            response = await handler(request)
        except RefusedError as refused:
            log.log(
                logging.WARNING if refused.status >= 500 else logging.INFO,
                "%s %r: %s %s",
                request.method,
                request.path,
                refused.status,
                refused.reason,
            )
            response = web.json_response({"reason": refused.reason}, status=refused.status, headers=headers)
        except web.HTTPException as error:
            response = web.json_response({"reason": f"{error.reason}."}, status=error.status)
        except Exception:
            log.exception("%s %r failed", request.method, request.path)
            response = web.json_response({"reason": FAILED}, status=500)
        self._requests.labels(request.method, response.status).inc()
        self._seconds.labels(request.method).observe(time.monotonic() - started)
        return response

    def _authorised(self, request: web.Request) -> bool:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(
            token.strip().encode(errors="surrogateescape"), self._token
        )

    async def get_all(self, _request: web.Request) -> web.Response:
        """GET /accounts: all of them."""
        accounts = self.store.index().by_username.values()
        return web.json_response({"accounts": [self.store.describe(one) for one in accounts]})

    async def get(self, request: web.Request) -> web.Response:
        """GET /accounts/{username}: one of them, or 404, or 409 while its files are being moved."""
        username = clean_name(request.match_info["username"])
        account = self.store.index().by_username.get(username)
        if account is None:
            raise RefusedError(404, f"There is no account of the name {username!r}.")
        # who only looks may start a server, too, and these numbers are about to be wrong
        self.store.check_not_moving(account)
        return web.json_response(self.store.describe(account))

    async def put(self, request: web.Request) -> web.Response:
        """PUT /accounts/{username}: makes it true, 201 if the account is new.

        `settle` in the answer: seconds until the NFS server knows groups that have just changed.
        """
        try:
            body = await request.json() if request.can_read_body else {}
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise RefusedError(400, "The body is no JSON.") from None
        wanted = Request.parse(request.match_info["username"], body)
        await self.nfs.check()
        index = self.store.index()
        account = self.store.satisfied(index, wanted)
        created = False
        if account is not None:
            with self.store.homes() as homes:
                self.store.make_home(homes, account)
            self.store.make_boxes(index, account)
        else:
            known = index.by_username.get(wanted.username)
            before = known and index.groups_of(known)
            account, created = await self._write(wanted)
            if known and self.store.index().groups_of(account) != before:
                self._regrouped[account.account] = time.monotonic()
        answer = self.store.describe(account)
        return web.json_response(answer | self._settle(account), status=201 if created else 200)

    def _settle(self, account: Account) -> dict[str, float]:
        """The answer's `settle`, or nothing when there is nothing to wait for."""
        changed = self._regrouped.get(account.account, -math.inf)
        left = changed + self.store.settings.group_expiration - time.monotonic()
        if left <= 0:
            self._regrouped.pop(account.account, None)
            return {}
        return {"settle": round(left, 1)}

    async def _write(self, wanted: Request) -> tuple[Account, bool]:
        done: asyncio.Future[tuple[Account, bool]] = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, done))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_waiting())
        # A client that goes away does not take back what it asked for.
        return await asyncio.shield(done)

    async def _write_waiting(self) -> None:
        """Writes requests as long as some wait, all that wait at a time."""
        while True:
            await asyncio.sleep(self.GATHER)
            if not self._waiting:
                return
            batch: list[tuple[Request, asyncio.Future[tuple[Account, bool]]]] = []
            results: list[tuple[Account, bool] | RefusedError]
            try:
                async with self.store.lock():
                    batch, self._waiting = self._waiting, []
                    results = self.store.write(request for request, _ in batch)
            except RefusedError as refused:
                if not batch:
                    batch, self._waiting = self._waiting, []
                results = [refused] * len(batch)
            except Exception:
                log.exception("writing accounts failed")
                if not batch:
                    batch, self._waiting = self._waiting, []
                results = [RefusedError(500, FAILED)] * len(batch)
            self._batches.inc()
            for (request, done), result in zip(batch, results, strict=True):
                if done.done():
                    continue
                if isinstance(result, RefusedError):
                    done.set_exception(result)
                    # Nobody may be left to take it.
                    done.exception()
                else:
                    done.set_result(result)
                    if result[1]:
                        self._created.inc()
                        log.info(
                            "created %s for %r: UID %s", result[0].account, request.username, result[0].uid
                        )

    async def health(self, _request: web.Request) -> web.Response:
        """GET /healthz: 200 if an account could be created now, else 503 with the reason."""
        await self.nfs.check()
        index = self.store.index()
        with self.store.homes():
            return web.json_response({"status": "ok", "accounts": len(index.by_username)})

    async def metrics(self, _request: web.Request) -> web.Response:
        """GET /metrics, for Prometheus."""
        with contextlib.suppress(RefusedError):
            self._known.set(len(self.store.index().by_username))
        return web.Response(body=generate_latest(self.registry), content_type="text/plain")


def main() -> None:
    """Runs the service until it is told to stop."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    settings = Settings.from_arguments()
    try:
        token = Path(settings.token_file).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SystemExit(f"The token file {settings.token_file} cannot be read: {error.strerror}") from error
    if not token:
        raise SystemExit(f"The token file {settings.token_file} is empty")
    web.run_app(
        Service(settings, token).app(), host=settings.host, port=settings.port, access_log=None, print=None
    )


if __name__ == "__main__":
    main()
