"""Asks the directory which users it still has, and which of them may still use the hub (playbooks/users.yml).

Runs in the hub's container, with the hub's configuration and authenticator, so that its answer is the one
that a login would get. Reads a JSON list of user names from standard input and prints for each of them
`present`, `gone` (the directory has no such user) or `not allowed` (in none of the groups that may use the
hub).

Somebody's home may depend on it, so whoever is in doubt is present. Whatever the directory does not say
clearly is the end, with a sentence on standard error: a directory that is down, that answers with an error,
that limits what it tells, or that shows nobody at all, has not lost its users.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ldap3
from authenticator import (
    CampusLDAPAuthenticator,
    DirectoryBrokenError,
    DirectoryUnreachableError,
    Person,
    folded,
)
from ldap3.core import results
from ldap3.utils.conv import escape_filter_chars
from ldap3.utils.dn import escape_rdn
from traitlets.config.loader import PyFileConfigLoader
from traitlets.utils.importstring import import_item

CONFIG = Path("/etc/jupyterhub/jupyterhub_config.py")
# Names in one search: directories give 500 or 1,000 entries at once, and long filters slow some of them.
BATCH = 100

PRESENT, GONE, NOT_ALLOWED = "present", "gone", "not allowed"


class CannotAskError(Exception):
    """The directory cannot be asked; the message is a sentence for the administrator."""


def load_authenticator(path: Path) -> CampusLDAPAuthenticator:
    """Make the hub's authenticator from the hub's configuration.

    Raises:
        CannotAskError: When the hub's is another one.
    """
    config = PyFileConfigLoader(path.name, path=str(path.parent)).load_config()
    chosen = config.JupyterHub.authenticator_class
    found = import_item(chosen) if isinstance(chosen, str) else chosen
    if not issubclass(found, CampusLDAPAuthenticator):
        raise CannotAskError(f"The hub's authenticator is {chosen}, which cannot tell who has left.")
    return found(config=config)


class Census:
    """Questions about many users, over one connection.

    Only groups that decide who may log in are asked about. Those of courses say nothing about that, are many,
    and may be gone from the directory without anybody being locked out.

    Attributes:
        role_groups: The groups that decide, as in the authenticator's `role_groups`.
        groups: Those of them that a user is in, for all whom the directory has.
        left_out: Users whom the directory has and `search_filter` leaves out.
    """

    def __init__(self, authenticator: CampusLDAPAuthenticator, usernames: list[str]) -> None:
        """Take whom to ask about; nothing is asked yet."""
        self.authenticator = authenticator
        self.usernames = usernames
        self.role_groups = authenticator._deciding_groups
        self.groups: dict[str, list[str]] = {}
        self.left_out: set[str] = set()

    def take(self) -> None:
        """Ask the directory.

        Raises:
            DirectoryBrokenError: When an answer is none.
            DirectoryUnreachableError: When no server answers.
        """
        # Another server may have been asked before, and failed halfway.
        self.groups, self.left_out = {}, set()
        with self.authenticator._search_connection() as connection:
            self.connection = connection
            self.require_groups()
            find = self.find_by_search if self.authenticator.lookup_dn else self.find_by_template
            for username, person in find():
                if self.matches_search_filter(person):
                    found = self.authenticator._groups_of(connection, person, self.role_groups)
                    self.groups.setdefault(username, []).extend(found)
                else:
                    self.left_out.add(username)

    def search(
        self, base: str, scope: str, search_filter: str, attributes: list[str] | None = None
    ) -> dict[str, dict[str, list[str]]]:
        """Search as the authenticator does, but take nothing for an answer that is not a whole one.

        Raises:
            DirectoryBrokenError: When the entries may not be all there are.
        """
        found = self.authenticator._search(
            self.connection, base, scope, search_filter, attributes, paged=scope == ldap3.SUBTREE
        )
        if self.connection.result["result"] != results.RESULT_SUCCESS:
            raise DirectoryBrokenError(
                f"a search below {base or 'the top'} gives {self.connection.result['description']}"
            )
        return found

    def require_groups(self) -> None:
        """Make sure that the groups are there: of one that is not, nobody would be a member.

        Raises:
            DirectoryBrokenError: When a group is not in the directory, or may not be read.
        """
        if self.authenticator.membership == "memberof":
            return
        for dn in self.role_groups.values():
            if not self.search(dn, ldap3.BASE, "(objectClass=*)"):
                raise DirectoryBrokenError(f"the group {dn} may not be read")

    def directory_names(self, username: str) -> list[str]:
        """Names that a user of the hub may have in the directory."""
        mapped = [name for name, hub_name in self.authenticator.username_map.items() if hub_name == username]
        return [username, *mapped]

    def find_by_search(self) -> Iterator[tuple[str, Person]]:
        """Yield users that are there, by the directory's spelling; who has several entries several times."""
        attribute = self.authenticator.user_attribute
        wanted = {
            folded(name): username for username in self.usernames for name in self.directory_names(username)
        }
        names = [name for username in self.usernames for name in self.directory_names(username)]
        for start in range(0, len(names), BATCH):
            filters = (
                self.authenticator.lookup_dn_search_filter.format(
                    login_attr=attribute, login=escape_filter_chars(name)
                )
                for name in names[start : start + BATCH]
            )
            base = self.authenticator.user_search_base or ""
            found = self.search(base, ldap3.SUBTREE, f"(|{''.join(filters)})", [attribute])
            for dn, attributes in found.items():
                # An alias counts as well: its owner is there.
                for value in attributes.get(attribute.lower(), []):
                    if folded(value) in wanted:
                        yield wanted[folded(value)], Person(dn, value)

    def find_by_template(self) -> Iterator[tuple[str, Person]]:
        """Yield users that are there, as `find_by_search` does. DNs can only be asked for one by one."""
        attribute = self.authenticator.user_attribute
        for username in self.usernames:
            for name in self.directory_names(username):
                for template in self.authenticator.bind_dn_template:
                    dn = template.format(username=escape_rdn(name))
                    found = self.authenticator._search(
                        self.connection, dn, ldap3.BASE, "(objectClass=*)", [attribute]
                    )
                    code = self.connection.result["result"]
                    if code not in (results.RESULT_SUCCESS, results.RESULT_NO_SUCH_OBJECT):
                        raise DirectoryBrokenError(f"{dn} gives {self.connection.result['description']}")
                    for attributes in found.values():
                        values = attributes.get(attribute.lower(), [])
                        same = [value for value in values if folded(value) == folded(name)]
                        yield username, Person(dn, next(iter(same), name))

    def matches_search_filter(self, person: Person) -> bool:
        """Tell whether `search_filter` leaves a user in."""
        template = self.authenticator.search_filter
        if not template:
            return True
        search_filter = template.format(
            userattr=self.authenticator.user_attribute, username=escape_filter_chars(person.name)
        )
        return bool(self.search(person.dn, ldap3.BASE, search_filter))

    def model(self, username: str) -> dict[str, Any]:
        """What a login hands on of a user's groups, as far as they decide."""
        groups = self.groups[username]
        return {
            "groups": groups,
            "auth_state": {"ldap_groups": [self.role_groups[group] for group in groups]},
        }


def allowed_by_name(authenticator: CampusLDAPAuthenticator, usernames: Iterable[str]) -> set[str]:
    """Return whom JupyterHub's own settings name, as the hub completes them at its start (`init_users`)."""
    # Administrators are added where there are names at all; without any, they need a group like everybody.
    named = authenticator.allowed_users and authenticator.allowed_users | authenticator.admin_users
    # All whom the hub knows may come back then, and whoever has an account was let in once.
    existing = set(usernames) if authenticator.allow_existing_users else set()
    return {authenticator.normalize_username(name) for name in named} | existing


async def sort(authenticator: CampusLDAPAuthenticator, usernames: list[str]) -> dict[str, str]:
    """Say of each user: present, gone or not allowed.

    Args:
        authenticator: The hub's.
        usernames: Names of users of the hub.

    Raises:
        CannotAskError: When the directory does not say.
    """
    census = Census(authenticator, usernames)
    anonymous = (
        ""
        if authenticator.lookup_dn_search_user
        else " The hub has no account that may search (hub_ldap_search_user) and asks anonymously."
    )
    try:
        authenticator._with_failover(census.take)
    except DirectoryUnreachableError as error:
        raise CannotAskError(f"The directory does not answer: {error}.") from error
    except DirectoryBrokenError as error:
        raise CannotAskError(f"The directory cannot be asked who has left: {error}.{anonymous}") from error
    said = {}
    named = allowed_by_name(authenticator, usernames)
    for username in usernames:
        if username in census.groups:
            allowed = username in named or await authenticator._is_allowed(username, census.model(username))
            said[username] = PRESENT if allowed else NOT_ALLOWED
        else:
            said[username] = NOT_ALLOWED if username in census.left_out else GONE
    if said and PRESENT not in said.values():
        raise CannotAskError(
            f"The directory shows none of {len(said)} users in a group that may use the hub, which is "
            f"hardly so.{anonymous}"
        )
    return said


def main() -> None:
    """Read names, ask, and print JSON, or a sentence on standard error."""
    try:
        print(json.dumps(asyncio.run(sort(load_authenticator(CONFIG), json.load(sys.stdin)))))
    except CannotAskError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
