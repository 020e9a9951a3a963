"""An LDAP directory's content from the inventory's lists of people and groups."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re

from ansible.errors import AnsibleFilterError

DOCUMENTATION = """
name: directory_ldif
short_description: LDIF of a small directory
version_added: 1.0.0
description:
  - Writes a whole directory as LDIF, with people below C(ou=people) and groups below C(ou=groups).
  - Names are escaped as DNs and LDIF want it; passwords are salted hashes, the same at every run.
positional: _input, users, groups
options:
  _input:
    description: DN of the directory. Its first part is a C(dc), C(o), C(ou) or C(c).
    type: str
    required: true
  users:
    description: >-
      People, each with C(name) and C(password), and, if wanted, C(given_name), C(surname), C(mail),
      C(uid_number) and C(gid_number).
    type: list
    elements: dict
    required: true
  groups:
    description: Groups, each with C(name) and C(members), a list of people's names.
    type: list
    elements: dict
    required: true
  search_password:
    description: Password of an entry C(cn=search), for programs. Empty for no such entry.
    type: str
    default: ""
"""

EXAMPLES = """
ldif: "{{ 'dc=campus,dc=example' | campus.jupyterhub.directory_ldif(people, groups) }}"
vars:
  people: [{name: alice, password: "{{ vault_alice }}"}]
  groups: [{name: students, members: [alice]}]
"""

RETURN = """
_value:
  description: The LDIF.
  type: str
"""

# The classes of an entry for a DN that begins with this attribute, and what they need besides it.
BASES = {
    "dc": ("dcObject", "organization"),
    "o": ("organization",),
    "ou": ("organizationalUnit",),
    "c": ("country",),
}


def escape(value: str) -> str:
    """Escape a value for a DN (RFC 4514, 2.4)."""
    escaped = re.sub(r'([\\,+"<>;=])', r"\\\1", value).replace("\0", r"\00")
    escaped = re.sub(r"^[ #]", lambda found: "\\" + found[0], escaped)
    return re.sub(r" $", r"\\ ", escaped)


def line(attribute: str, value: object) -> str:
    """Write one attribute of an LDIF; as base64 where plain text would not come through (RFC 2849)."""
    text = str(value)
    if re.fullmatch(r"(?![ :<])[\x01-\x09\x0b\x0c\x0e-\x7f]*(?<! )", text):
        return f"{attribute}: {text}"
    return f"{attribute}:: {base64.b64encode(text.encode()).decode()}"


def entry(dn: str, attributes: list[tuple[str, object]]) -> str:
    """Write one entry of an LDIF."""
    return "\n".join(line(*pair) for pair in [("dn", dn), *attributes]) + "\n"


def hashed(password: str, dn: str) -> str:
    """Return a password's {SSHA} hash (RFC 3112 style, OpenLDAP's default).

    The salt comes from password and DN: another one at each run would be another directory at each run, and
    the same one for two people would show who has the same password.
    """
    salt = hmac.digest(password.encode(), dn.encode(), "sha256")[:8]
    digest = hashlib.sha1(password.encode() + salt).digest()  # noqa: S324 - the scheme that every slapd has
    return "{SSHA}" + base64.b64encode(digest + salt).decode()


def base_entry(base: str) -> str:
    """Write the entry at the top.

    Raises:
        AnsibleFilterError: When the DN begins with something that no known class has.
    """
    found = re.match(r"\s*([A-Za-z]+)\s*=\s*((?:[^,+\\]|\\.)+)(?:,|$)", base)
    attribute = found[1].lower() if found else ""
    if attribute not in BASES:
        raise AnsibleFilterError(f"directory: the base DN {base!r} must begin with one of {', '.join(BASES)}")
    value = re.sub(r"\\(.)", r"\1", found[2].strip())
    attributes = [("objectClass", object_class) for object_class in BASES[attribute]] + [(attribute, value)]
    if attribute == "dc":
        attributes.append(("o", value))
    return entry(base, attributes)


def person_entry(dn: str, user: dict) -> str:
    """Write one person.

    Raises:
        AnsibleFilterError: When the password is missing, or one of the two numbers.
    """
    name = str(user["name"])
    if not user.get("password"):
        raise AnsibleFilterError(f"directory: {name} has no password")
    if ("uid_number" in user) != ("gid_number" in user):
        raise AnsibleFilterError(f"directory: {name} needs both uid_number and gid_number, or none of them")
    surname = user.get("surname") or name
    posix = "uid_number" in user
    # slapadd wants the values of one attribute in one place.
    classes = ["inetOrgPerson", "posixAccount"] if posix else ["inetOrgPerson"]
    attributes = [("objectClass", object_class) for object_class in classes]
    attributes += [
        ("uid", name),
        ("cn", " ".join(filter(None, [user.get("given_name"), surname]))),
        ("sn", surname),
        ("userPassword", hashed(str(user["password"]), dn)),
    ]
    more = {"givenName": user.get("given_name"), "mail": user.get("mail")}
    attributes += [pair for pair in more.items() if pair[1]]
    if posix:
        attributes += [
            ("uidNumber", user["uid_number"]),
            ("gidNumber", user["gid_number"]),
            # The class wants one; it is of no use to the cluster.
            ("homeDirectory", "/nonexistent"),
        ]
    return entry(dn, attributes)


def directory_ldif(base: str, users: list[dict], groups: list[dict], search_password: str = "") -> str:
    """Write a directory as LDIF.

    Args:
        base: DN of the directory.
        users: People; see the documentation above.
        groups: Groups; see the documentation above.
        search_password: Password of `cn=search`, empty for no such entry.

    Returns:
        The LDIF.

    Raises:
        AnsibleFilterError: When the base DN or a person is not usable.
    """
    entries = [base_entry(base)]
    entries += [
        entry(f"ou={unit},{base}", [("objectClass", "organizationalUnit"), ("ou", unit)])
        for unit in ("people", "groups")
    ]
    if search_password:
        dn = f"cn=search,{base}"
        entries.append(
            entry(
                dn,
                [
                    ("objectClass", "organizationalRole"),
                    ("objectClass", "simpleSecurityObject"),
                    ("cn", "search"),
                    ("userPassword", hashed(search_password, dn)),
                ],
            )
        )
    people = {str(user["name"]): f"uid={escape(str(user['name']))},ou=people,{base}" for user in users}
    entries += [person_entry(people[str(user["name"])], user) for user in users]
    for group in groups:
        # A group of this class has a member; an empty one has the directory itself.
        members = [people[str(name)] for name in group["members"]] or [base]
        attributes = [("objectClass", "groupOfNames"), ("cn", group["name"])]
        entries.append(
            entry(
                f"cn={escape(str(group['name']))},ou=groups,{base}",
                attributes + [("member", dn) for dn in members],
            )
        )
    return "\n".join(entries)


class FilterModule:
    """Filters of the collection for the directory."""

    def filters(self) -> dict:
        """Name the filters.

        Returns:
            The filters by name.
        """
        return {"directory_ldif": directory_ldif}
