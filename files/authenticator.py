"""Login against an LDAP directory, with groups, UIDs and several servers.

`CampusLDAPAuthenticator` is LDAPAuthenticator 2 with what a school needs besides:

* Hub groups come from LDAP groups (`role_groups`): by the groups' own lists, by `memberOf`, or by Active
  Directory's nested groups (`membership`). Who is in none of the allowed ones is told so.
* Certificates are verified unless someone says otherwise. (ldap3 verifies none of its own accord.)
* Several servers, with timeouts. A directory that is down gives a sentence on the login page.
* LDAP is asked in threads of its own: a slow directory does not stop the hub.
* The user's name is the directory's spelling: nobody gets a second account by typing ` Alice `.

Names: the login name is stripped and put into Unicode's NFC. The name of the hub's user is the entry's
`user_attribute` (uid) in NFC and lower case. Everything else in a name stays as it is; what is unsafe in a
filter or a DN is escaped. With several DN templates, a name that is under more than one of them is one
account, for whoever's password it is. Where that can happen use search and bind, which refuses such names.

Sources: RFC 4511 (result codes, referrals), RFC 4513 5.1.2 (a bind without a password succeeds and proves
nothing), RFC 4514 and 4515 (escaping), RFC 4517 and 4518 (when DNs are equal), RFC 4013 (SASLprep), MS-ADTS
(Active Directory).
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
import unicodedata
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import urlsplit

import ldap3
from jupyterhub.spawner import SpawnException
from jupyterhub.utils import maybe_future
from ldap3.core import results
from ldap3.core.exceptions import LDAPException, LDAPInvalidDnError
from ldap3.protocol.sasl.sasl import sasl_prep
from ldap3.utils.conv import escape_filter_chars
from ldap3.utils.dn import escape_rdn, parse_dn
from ldapauthenticator import LDAPAuthenticator
from ldapauthenticator.ldapauthenticator import TlsStrategy
from tornado import web
from traitlets import Dict, Enum, Float, Int, List, Unicode, default

T = TypeVar("T")

# Answers to a bind that say something about the user and nothing about the server: wrong password, no such
# entry, no password set, locked (ppolicy answers 19 or 49, others 53), or a name that makes no DN.
REFUSED_BINDS = {
    results.RESULT_INVALID_CREDENTIALS,
    results.RESULT_NO_SUCH_OBJECT,
    results.RESULT_INAPPROPRIATE_AUTHENTICATION,
    results.RESULT_CONSTRAINT_VIOLATION,
    results.RESULT_UNWILLING_TO_PERFORM,
    results.RESULT_INVALID_DN_SYNTAX,
}

# Answers of a server that another one need not give.
UNAVAILABLE = {results.RESULT_BUSY, results.RESULT_UNAVAILABLE, results.RESULT_TIME_LIMIT_EXCEEDED}

# "Is the user in this group, or in a group in it?" Active Directory follows the chain (MS-ADTS 3.1.1.3.4.4.3,
# LDAP_MATCHING_RULE_TRANSITIVE_EVAL); another directory does not know the rule and finds nobody.
NESTED_FILTER = "(member:1.2.840.113556.1.4.1941:={userdn})"

# Entries in a page of an answer, and the control that tells of more (RFC 2696): Active Directory gives 1,000
# at once and no more.
PAGE = 500
PAGED_RESULTS = "1.2.840.113556.1.4.319"

UNREACHABLE = (
    "The directory that checks passwords does not answer, so your password was not checked. "
    "Please try again in a few minutes."
)
BROKEN = (
    "The directory refuses the hub's questions, so nobody can log in. "
    "Please tell the administrators; the hub's log has the reason."
)
NOT_ALLOWED = "Your password is right, but your account is in none of the groups that may use this hub."
NO_LONGER_ALLOWED = (
    "Your account is not, or no longer, in any of the groups that may use this hub, so no server was started."
)
UNUSABLE = (
    "The directory's entry for your account cannot be used here. "
    "Please tell the administrators; the hub's log has the reason."
)


class DirectoryUnreachableError(Exception):
    """No server of the directory answered in time."""


class ServerFailedError(DirectoryUnreachableError):
    """A server that had taken a connection gave no answer to a question; another one may."""


class DirectoryBrokenError(Exception):
    """A server answered that it will not do what the configuration asks for."""


class UnusableEntryError(Exception):
    """The user's entry lacks a definite name, or has numbers that are no UID or GID."""


@dataclass(frozen=True)
class Person:
    """What the directory says about a user.

    Attributes:
        dn: Distinguished name of the entry.
        name: Value of the user attribute, in the directory's spelling.
        uid: The directory's UID, if it has one.
        gid: The directory's GID, if it has one.
    """

    dn: str
    name: str
    uid: int | None = None
    gid: int | None = None


def normalized(name: str) -> str:
    """Return the hub's spelling of a directory name: stripped, NFC, lower case."""
    # Lower case may leave a form that is not composed.
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).strip().lower())


def folded(text: str) -> str:
    """Return the form of a value in which case, spaces and Unicode's forms make no difference (RFC 4518)."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def unescaped(value: str) -> str:
    """Return the value within a DN without its escapes.

    RFC 4514: a backslash stands before a special character, or before the two digits of a byte.
    """
    plain = re.sub(
        rb"\\(?:([0-9A-Fa-f]{2})|(.))",
        lambda found: bytes([int(found[1], 16)]) if found[1] else found[2],
        value.encode(),
        flags=re.DOTALL,
    )
    return plain.decode(errors="replace")


def comparable(dn: str) -> Hashable:
    """Return a form of a DN that is equal for equal DNs, however they are written.

    Case, spaces, ways to escape, and the order within one part of it (`cn=a+sn=b`) make no difference, as in
    RFC 4517, 4.2.15 (distinguishedNameMatch). What cannot be read as a DN equals its own text only.

    Args:
        dn: The DN, as the directory or the inventory has it.

    Returns:
        Something to compare and to look up.
    """
    try:
        values = parse_dn(dn, strip=True)
    except LDAPInvalidDnError:
        return folded(dn)
    parts: list[frozenset[tuple[str, str]]] = []
    part: set[tuple[str, str]] = set()
    for attribute, value, separator in values:
        part.add((attribute.lower(), folded(unescaped(value))))
        if separator != "+":
            parts.append(frozenset(part))
            part = set()
    return tuple(parts)


class CampusLDAPAuthenticator(LDAPAuthenticator):
    """Authenticates users against LDAP and puts them into hub groups by their LDAP groups."""

    server_addresses = List(
        Unicode(),
        config=True,
        help="""
        Names or addresses of servers with the same content, each with an optional `:port` (`[::1]:636`).

        The first that answers is asked, and stays the first until it fails, be it in the midst of a login.
        Empty: only `server_address`.
        """,
    )

    connect_timeout = Float(
        5,
        config=True,
        help="Seconds until a server that does not accept a connection counts as down.",
    )

    answer_timeout = Int(
        10,
        config=True,
        help="Seconds until a server that does not answer a request counts as down.",
    )

    ca_file = Unicode(
        config=True,
        help="""
        PEM file of the certificate authorities that the servers' certificates are verified with.

        Empty: the system's. What is in `tls_kwargs` wins over this, and over `validate`, which is on.
        """,
    )

    role_groups = Dict(
        key_trait=Unicode(),
        value_trait=Unicode(),
        config=True,
        help="""
        Hub group → DN of the LDAP group whose members are in it. `membership` says how they are found.
        """,
    ).tag(allow_config=True)

    membership = Enum(
        ["member", "memberof", "ad-nested"],
        "member",
        config=True,
        help="""
        How the groups of a user are found.

        - `member`: each group is asked with `group_search_filter`: for the user's DN in `member` or
          `uniqueMember`, or for the user's name in `memberUid`.
        - `memberof`: the user's entry is asked for `memberOf`, once for all groups. Whether groups within
          groups count is the directory's decision: in Active Directory they do not.
        - `ad-nested`: each group is asked whether the user is in it or in any group within it. Only Active
          Directory and Samba can tell.

        None of them finds the primary group, neither a POSIX account's `gidNumber` nor Active Directory's
        `primaryGroupID` (as a rule, Domain Users).
        """,
    )

    allowed_roles = List(
        Unicode(),
        config=True,
        help="Hub groups whose members may log in. Empty: all groups of `role_groups`.",
    )

    admin_group = Unicode(
        config=True,
        help="""
        The hub group whose members administer the hub. Who leaves it is none from the next login on.

        Empty: the directory does not say who administers the hub.
        """,
    )

    uid_attribute = Unicode(
        "uidNumber",
        config=True,
        help="Attribute with the user's UID, which entries may lack. Empty: UIDs are never the directory's.",
    )

    gid_attribute = Unicode(
        "gidNumber",
        config=True,
        help="Attribute with the user's GID, which entries may lack. Empty: GIDs are never the directory's.",
    )

    refresh_timeout = Float(
        10,
        config=True,
        help="""
        Seconds that a page or a start waits until the directory has said in which groups a user is now.

        After that it goes on with the groups that the hub knows.
        """,
    )

    concurrent_logins = Int(16, config=True, help="Logins that may wait for the directory at once.")

    # A name is data here and escaped wherever it is used. 255 characters are what the hub's database holds.
    valid_username_regex = Unicode(
        r"^[^\x00-\x1f\x7f\ud800-\udfff]{1,255}\Z",
        config=True,
        help="Login names that do not match are refused before the directory is asked.",
    )

    @default("manage_groups")
    def _manage_groups_default(self) -> bool:
        return True

    @default("allow_existing_users")
    def _allow_existing_users_default(self) -> bool:
        # JupyterHub's is True beside `allowed_users`: who was let in once could come back without any group.
        return False

    @default("user_attribute")
    def _user_attribute_default(self) -> str:
        return "uid"

    def __init__(self, **kwargs: Any) -> None:
        """Prepare the threads that wait for the directory."""
        super().__init__(**kwargs)
        self._executor = ThreadPoolExecutor(self.concurrent_logins, thread_name_prefix="ldap")
        # When a server failed last, by its address.
        self._failures: dict[str, float] = {}

    # --- What JupyterHub calls ---------------------------------------------------------------

    def normalize_username(self, username: str) -> str:
        """Return the hub's name of a user; see the top of this file."""
        username = normalized(username)
        return self.username_map.get(username, username)

    async def authenticate(self, handler: Any, data: dict[str, str]) -> dict[str, Any] | None:
        """Check a name and a password.

        Args:
            handler: The login page's request, unused.
            data: The login form: `username` and `password`.

        Returns:
            Name, groups, admin status and auth state; None when name or password are wrong.

        Raises:
            web.HTTPError: With a sentence for the login page, when there is more to say than that.
        """
        login = unicodedata.normalize("NFC", data.get("username") or "").strip()
        password = data.get("password") or ""
        model = await self._in_thread(self._log_in, login, password)
        if model is None:
            # What was typed may be a password in the wrong field: only its beginning is logged.
            self.log.warning("Login of %.16r refused: wrong name or password", login)
        elif not self.validate_username(self.normalize_username(model["name"])):
            self.log.error("%r is no possible name of a hub user", model["name"])
            raise web.HTTPError(403, UNUSABLE)
        return model

    async def check_allowed(self, username: str, authentication: dict[str, Any] | None = None) -> bool:
        """Let in members of the allowed groups, and whom JupyterHub's own settings allow.

        Args:
            username: The normalised name.
            authentication: What `authenticate` returned.

        Returns:
            True.

        Raises:
            web.HTTPError: With a sentence for the login page, when the user is in none of the groups.
        """
        if await self._is_allowed(username, authentication or {}):
            return True
        self.log.warning("Login of %r refused: in none of the allowed groups", username)
        raise web.HTTPError(403, NOT_ALLOWED)

    async def _is_allowed(self, username: str, authentication: dict[str, Any]) -> bool:
        """Tell whether the groups, or JupyterHub's own settings, let somebody in."""
        if set(self.allowed_roles or self.role_groups) & set(authentication.get("groups") or []):
            return True
        return bool(await maybe_future(super().check_allowed(username, authentication)))

    @property
    def _deciding_groups(self) -> dict[str, str]:
        """Those of `role_groups` that may let somebody in: `_is_allowed` asks for no others."""
        roles = self.allowed_roles or self.role_groups
        # LDAPAuthenticator compares its own `allowed_groups` with the DNs of `role_groups`, letter by letter.
        dns = self.allowed_groups or []
        return {group: dn for group, dn in self.role_groups.items() if group in roles or dn in dns}

    async def refresh_user(self, user: Any, handler: Any = None) -> dict[str, Any] | bool:
        """Ask for a user's groups again, as often as `auth_refresh_age` says.

        Args:
            user: The hub's user.
            handler: The request, or None.

        Returns:
            What the directory says now; True when it cannot be asked; False when the user has to go.
        """
        model, refusal = await self._ask_again(user)
        if model is None:
            return True
        if not refusal:
            return model
        self.log.warning("%r is gone from the directory or from the allowed groups", user.name)
        if handler is not None:
            # JupyterHub ends the session and nothing else: an administrator's tokens would keep their rights.
            await handler.auth_to_user(model, user)
        return False

    async def pre_spawn_start(self, user: Any, spawner: Any) -> None:
        """Ask for a user's groups again before a start, which has its image and its mounts from them.

        Not by `refresh_pre_spawn`: that asks before the start counts as pending. After one second the browser
        is at the page of pending starts, and would read there that no server is running.

        Args:
            user: The hub's user.
            spawner: The server that starts. Its handler is the request for it.

        Raises:
            SpawnException: With a sentence for the spawn page, when the user may not use the hub any more.
        """
        handler = spawner.handler
        model, refusal = await self._ask_again(user)
        if model is None:
            return
        await handler.auth_to_user(model, user)
        if refusal:
            error = SpawnException(refusal, reason="account", status_code=403)
            # The page of pending starts shows nothing but this.
            error.jupyterhub_message = refusal
            raise error

    async def _ask_again(self, user: Any) -> tuple[dict[str, Any] | None, str]:
        """Ask the directory about a user of the hub, without a password.

        That takes an account that may search: without `lookup_dn` and `lookup_dn_search_user`, groups are
        renewed at the next login only.

        Args:
            user: The hub's user.

        Returns:
            What the directory says, no groups when the user is gone, None when it cannot be asked; and a
            sentence when the user has to go, else an empty one.
        """
        if not (self.lookup_dn and self.lookup_dn_search_user):
            return None, ""
        state = await user.get_auth_state()
        name = (state or {}).get("ldap_name") or user.name
        gone = {"name": user.name, "groups": [], "admin": self._is_admin([], user.name), "auth_state": state}
        try:
            async with asyncio.timeout(self.refresh_timeout):
                model = await self._in_thread(self._look_up_again, name)
        except TimeoutError:
            self.log.error("The directory did not say in time which groups %r is in", user.name)
            return None, ""
        except web.HTTPError as error:
            # A directory that is down ends nobody's session, and keeps nobody's server from starting.
            return (None, "") if error.status_code == 503 else (gone, error.log_message)
        if model is None or self.normalize_username(model["name"]) != user.name:
            return gone, NO_LONGER_ALLOWED
        model["name"] = user.name
        return model, "" if await self._is_allowed(user.name, model) else NO_LONGER_ALLOWED

    # --- The directory, asked in a thread ----------------------------------------------------

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Run a blocking function beside the hub's loop, and turn the directory's troubles into sentences."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._executor, self._with_failover, function, *args)
        except DirectoryUnreachableError as error:
            self.log.error("The directory does not answer: %s", error)
            raise web.HTTPError(503, UNREACHABLE) from error
        except DirectoryBrokenError as error:
            self.log.error("The directory cannot be asked: %s", error)
            raise web.HTTPError(503, BROKEN) from error
        except UnusableEntryError as error:
            self.log.error("An entry cannot be used: %s", error)
            raise web.HTTPError(403, UNUSABLE) from error

    def _with_failover(self, function: Callable[..., T], *args: Any) -> T:
        """Run a function that asks the directory; again, on another server, when one fails halfway.

        Raises:
            DirectoryUnreachableError: When no server gets to the end of it.
        """
        for _ in range(len(self._addresses) - 1):
            with suppress(ServerFailedError):
                return function(*args)
        return function(*args)

    def _log_in(self, login: str, password: str) -> dict[str, Any] | None:
        """Prove the password and read who that is; None when it proves nothing."""
        if not re.match(self.valid_username_regex, login) or not self._provable(password):
            return None
        if self.lookup_dn:
            with self._search_connection() as search:
                found = self._find(search, login)
                if found is None:
                    return None
                with self._bound(found, password) as own:
                    if own is None:
                        return None
                    # An account that may search sees what users may not; anonymously it is less.
                    return self._read_model(search if self.lookup_dn_search_user else own, found, login)
        for template in self.bind_dn_template:
            dn = template.format(username=escape_rdn(login))
            with self._bound(dn, password) as own:
                if own is not None:
                    return self._read_model(own, dn, login)
        return None

    def _look_up_again(self, name: str) -> dict[str, Any] | None:
        """Read a known user without a password; None when the directory has no such user."""
        with self._search_connection() as search:
            dn = self._find(search, name)
            return dn and self._read_model(search, dn, name)

    @staticmethod
    def _provable(password: str) -> bool:
        """Tell whether a password proves anything.

        A bind with a DN and an empty password is anonymous and succeeds on many servers. ldap3 puts passwords
        through SASLprep *after* it looks whether they are empty, and SASLprep drops some characters, such as
        the soft hyphen.
        """
        try:
            return bool(password and sasl_prep(password).strip().encode())
        except (LDAPException, ValueError):
            return False

    def _read_model(self, connection: ldap3.Connection, dn: str, login: str) -> dict[str, Any] | None:
        """Read a person and the groups; None when `search_filter` leaves the person out."""
        person = self._read_person(connection, dn, login)
        if person is None:
            return None
        groups = self._groups_of(connection, person)
        state: dict[str, Any] = {
            "ldap_name": person.name,
            "ldap_groups": [self.role_groups[group] for group in groups],
        }
        if person.uid is not None:
            state["uid"] = person.uid
        if person.gid is not None:
            state["gid"] = person.gid
        admin = self._is_admin(groups, self.normalize_username(person.name))
        return {"name": person.name, "groups": groups, "admin": admin, "auth_state": state}

    def _is_admin(self, groups: list[str], username: str) -> bool | None:
        """Tell whether a user administers the hub; None when the directory does not say."""
        if not self.admin_group:
            return None
        return self.admin_group in groups or username in self.admin_users

    def _find(self, connection: ldap3.Connection, login: str) -> str | None:
        """Return the DN of the one entry with a login name; None when there is none, or no definite one."""
        search_filter = self.lookup_dn_search_filter.format(
            login_attr=self.user_attribute, login=escape_filter_chars(login)
        )
        found = self._search(connection, self.user_search_base or "", ldap3.SUBTREE, search_filter)
        if len(found) > 1:
            self.log.error("%r is the name of several entries: %s", login, list(found))
            return None
        return next(iter(found), None)

    def _read_person(self, connection: ldap3.Connection, dn: str, login: str) -> Person | None:
        """Read one entry; None when `search_filter` leaves it out.

        Raises:
            UnusableEntryError: When its name is not definite, or a number is no UID or GID.
        """
        search_filter = "(objectClass=*)"
        if self.search_filter:
            search_filter = self.search_filter.format(
                userattr=self.user_attribute, username=escape_filter_chars(login)
            )
        wanted = [name for name in (self.user_attribute, self.uid_attribute, self.gid_attribute) if name]
        found = self._search(connection, dn, ldap3.BASE, search_filter, wanted)
        if not found:
            if self.search_filter:
                self.log.warning("%s does not match search_filter", dn)
                return None
            raise UnusableEntryError(f"{dn} may not be read with the account that the hub uses")
        attributes = next(iter(found.values()))

        names = attributes.get(self.user_attribute.lower(), [])
        rdn_attribute, rdn_value = self._first_rdn(dn)
        if len(names) > 1 and rdn_attribute == self.user_attribute.lower():
            # Aliases. The one in the DN is the name: it is the one that cannot change by the way.
            names = [name for name in names if normalized(name) == normalized(rdn_value)]
        if len(names) != 1:
            raise UnusableEntryError(f"{dn} has no definite {self.user_attribute}: {names}")
        return Person(
            dn,
            names[0],
            self._number(dn, attributes, self.uid_attribute),
            self._number(dn, attributes, self.gid_attribute),
        )

    @staticmethod
    def _first_rdn(dn: str) -> tuple[str, str]:
        """Return attribute and value of a DN's first part, the value without escapes."""
        try:
            attribute, value, _ = parse_dn(dn, escape=False, strip=True)[0]
        except (LDAPInvalidDnError, IndexError):
            return "", ""
        return attribute.lower(), unescaped(value)

    @staticmethod
    def _number(dn: str, attributes: dict[str, list[str]], name: str) -> int | None:
        """Return the UID or GID in an attribute; None when there is none.

        Raises:
            UnusableEntryError: When it is not one positive number. 0 would be root.
        """
        values = attributes.get(name.lower(), []) if name else []
        if not values:
            return None
        number = int(values[0]) if len(values) == 1 and values[0].isascii() and values[0].isdigit() else 0
        # 2**32 - 1 and 2**16 - 1 mean "no user" to the system's calls.
        if not 0 < number < 2**32 - 1 or number == 2**16 - 1:
            raise UnusableEntryError(f"{dn} has {name} {values}")
        return number

    def _groups_of(
        self, connection: ldap3.Connection, person: Person, role_groups: dict[str, str] | None = None
    ) -> list[str]:
        """Return the hub groups of a person, of all `role_groups` or of those that are given."""
        role_groups = self.role_groups if role_groups is None else role_groups
        if self.membership == "memberof":
            found = {comparable(dn) for dn in self._all_values(connection, person.dn, "memberOf")}
            return [group for group, dn in role_groups.items() if comparable(dn) in found]
        template = NESTED_FILTER if self.membership == "ad-nested" else self.group_search_filter
        search_filter = template.format(
            userdn=escape_filter_chars(person.dn), uid=escape_filter_chars(person.name)
        )
        return [group for group, dn in role_groups.items() if self._matches(connection, dn, search_filter)]

    def _matches(self, connection: ldap3.Connection, group_dn: str, search_filter: str) -> bool:
        """Tell whether a filter is true of an LDAP group."""
        found = self._search(connection, group_dn, ldap3.BASE, search_filter)
        if connection.result["result"] == results.RESULT_NO_SUCH_OBJECT:
            self.log.error("role_groups names %s, which is not in the directory or may not be read", group_dn)
        return bool(found)

    def _all_values(self, connection: ldap3.Connection, dn: str, attribute: str) -> list[str]:
        """Return all values of an attribute, however many the server gives at once.

        Active Directory gives 1500 and says so in the attribute's name, `memberOf;range=0-1499`; the last
        come as `memberOf;range=1500-*` (MS-ADTS 3.1.1.3.1.3.3). ldap3 could ask for them itself, but would
        take an error halfway for the end.
        """
        wanted, values = attribute, []
        while wanted:
            found = self._search(connection, dn, ldap3.BASE, "(objectClass=*)", [wanted])
            wanted = ""
            for name, some in next(iter(found.values()), {}).items():
                values += some
                if last := re.fullmatch(r".*;range=\d+-(\d+)", name):
                    wanted = f"{attribute};range={int(last[1]) + 1}-*"
        return values

    # --- Connections -------------------------------------------------------------------------

    @contextmanager
    def _search_connection(self) -> Iterator[ldap3.Connection]:
        """Open a connection as the account that looks users up, or anonymously.

        Raises:
            DirectoryBrokenError: When that account is refused.
        """
        user = self.lookup_dn_search_user or None
        with self._bound(user, self.lookup_dn_search_password or None) as connection:
            if connection is None:
                raise DirectoryBrokenError(
                    f"it refuses the account that looks users up, {user or 'anonymous'}"
                )
            yield connection

    @contextmanager
    def _bound(self, dn: str | None, password: str | None) -> Iterator[ldap3.Connection | None]:
        """Open a connection as a user, None when the directory refuses, and close it in the end."""
        connection = self.get_connection(dn, password)
        try:
            yield connection
        finally:
            if connection is not None:
                # The connection may be lost already.
                with suppress(LDAPException, OSError):
                    connection.unbind()

    def get_connection(self, userdn: str | None, password: str | None) -> ldap3.Connection | None:
        """Bind to the first server that answers.

        A referral (RFC 4511, 4.2.2) asks to try another server, which here is the next one of ours and never
        the one it names. When all refer elsewhere, nobody here knows the DN.

        Args:
            userdn: DN to bind as, None for an anonymous bind.
            password: Its password.

        Returns:
            The connection, or None when the server refuses the DN or the password.

        Raises:
            DirectoryUnreachableError: When no server answers.
            DirectoryBrokenError: When a server answers, and will not let anybody in this way.
        """
        problems: list[str] = []
        codes: set[int] = set()
        for address in self._addresses:
            try:
                connection = self._open(address, userdn, password)
                connection.bind()
            except (LDAPException, OSError) as error:
                problems.append(self._note_failure(address, str(error)))
                continue
            code = connection.result["result"]
            if code == results.RESULT_SUCCESS:
                # For the search that finds out that this server is no use.
                connection.campus_address = address
                return connection
            with suppress(LDAPException, OSError):
                connection.unbind()
            answer = f"{connection.result['description']} {connection.result['message']}"
            if code in REFUSED_BINDS:
                self.log.debug("%s refuses %s: %s", address, userdn, answer)
                return None
            problems.append(self._note_failure(address, answer))
            codes.add(code)
        if results.RESULT_REFERRAL in codes:
            return None
        if codes - UNAVAILABLE:
            raise DirectoryBrokenError("; ".join(problems))
        raise DirectoryUnreachableError("; ".join(problems))

    @property
    def _addresses(self) -> list[str]:
        """The servers in the order in which they are asked: who failed last comes last."""
        # The sort is stable: those that never failed stay in the inventory's order.
        return sorted(
            self.server_addresses or [self.server_address],
            key=lambda address: self._failures.get(address, 0.0),
        )

    def _note_failure(self, address: str, reason: str) -> str:
        """Put a server behind the others, and return what there is to say about it."""
        self._failures[address] = time.monotonic()
        self.log.warning("The LDAP server %s is no use: %s", address, reason)
        return f"{address}: {reason}"

    def _open(self, address: str, userdn: str | None, password: str | None) -> ldap3.Connection:
        """Connect to one server, up to the point where TLS is verified and a password may be sent."""
        host, port = self._split(address)
        strategy = self.tls_strategy
        server = ldap3.Server(
            host,
            port=port or self.server_port,
            use_ssl=strategy == TlsStrategy.on_connect,
            tls=None if strategy == TlsStrategy.insecure else self._tls(host),
            connect_timeout=self.connect_timeout,
            get_info=ldap3.NONE,
        )
        connection = ldap3.Connection(
            server,
            user=userdn,
            password=password,
            receive_timeout=self.answer_timeout,
            # A referral would send the password to a server that nobody configured.
            auto_referrals=False,
            # See _all_values. With empty attributes ldap3 cannot read what it asks for by range.
            auto_range=False,
            return_empty_attributes=False,
            check_names=False,
            read_only=True,
        )
        connection.open(read_server_info=False)
        if strategy == TlsStrategy.before_bind:
            connection.start_tls(read_server_info=False)
        return connection

    def _tls(self, host: str) -> ldap3.Tls:
        """Return the settings of TLS for a server."""
        settings: dict[str, Any] = {"validate": ssl.CERT_REQUIRED}
        if self.ca_file:
            settings["ca_certs_file"] = self.ca_file
        # A name and nothing else (RFC 6066, section 3): Active Directory hangs up on the whole URL.
        name = urlsplit(host).hostname or host if "://" in host else host
        try:
            ip_address(name)
        except ValueError:
            settings["sni"] = name
        return ldap3.Tls(**settings | self.tls_kwargs)

    @staticmethod
    def _split(address: str) -> tuple[str, int]:
        """Split `host:port`; the port is 0 when there is none."""
        host, _, port = address.rpartition(":")
        if host and port.isdigit() and (":" not in host or host.startswith("[")):
            return host.strip("[]"), int(port)
        return address.strip("[]"), 0

    def _search(
        self,
        connection: ldap3.Connection,
        base: str,
        scope: str,
        search_filter: str,
        attributes: list[str] | None = None,
        paged: bool = False,
    ) -> dict[str, dict[str, list[str]]]:
        """Search, and return the entries' attributes by DN, with attribute names in lower case.

        With `paged`, all of them, however many the server gives at once. A login needs no pages: it asks for
        an entry by its DN, or by a name that two of them must not have.

        References to other servers among the entries (RFC 4511, 4.5.3), as Active Directory gives them for a
        whole domain, are left out, and what is elsewhere altogether (result code 10) is not found.

        Raises:
            ServerFailedError: When the server does not answer, or says that it cannot now.
            DirectoryBrokenError: When the server refuses to search.
        """
        # A server that knows no pages gives all that it would give at once.
        paging = {"paged_size": PAGE} if paged else {}
        found: dict[str, dict[str, list[str]]] = {}
        while True:
            self._ask(connection, base, scope, search_filter, attributes or [ldap3.NO_ATTRIBUTES], **paging)
            found |= {
                entry["dn"]: {
                    name.lower(): [value.decode(errors="replace") for value in values]
                    for name, values in entry["raw_attributes"].items()
                }
                for entry in connection.response or []
                if entry["type"] == "searchResEntry"
            }
            answer = (connection.result.get("controls") or {}).get(PAGED_RESULTS)
            cookie = answer and answer["value"]["cookie"]
            if not cookie:
                return found
            paging["paged_cookie"] = cookie

    def _ask(
        self,
        connection: ldap3.Connection,
        base: str,
        scope: str,
        search_filter: str,
        attributes: list[str],
        **paging: Any,
    ) -> None:
        """Ask a server once; see `_search`."""
        try:
            connection.search(base, search_filter, scope, attributes=attributes, **paging)
        except (LDAPException, OSError) as error:
            raise ServerFailedError(self._note_failure(connection.campus_address, str(error))) from error
        code, description = connection.result["result"], connection.result["description"]
        if code in UNAVAILABLE:
            raise ServerFailedError(self._note_failure(connection.campus_address, description))
        if code == results.RESULT_REFERRAL:
            self.log.error("%s is kept by another server: %s", base, connection.result.get("referrals"))
        # Two matches are as good as all of them: a size limit only means that there are several.
        elif code not in (
            results.RESULT_SUCCESS,
            results.RESULT_NO_SUCH_OBJECT,
            results.RESULT_SIZE_LIMIT_EXCEEDED,
        ):
            raise DirectoryBrokenError(f"a search below {base} gives {description}")
