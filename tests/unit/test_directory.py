"""The filter behind the role `directory`."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
from pathlib import Path

import pytest
from ansible.errors import AnsibleFilterError

PATH = Path(__file__).parents[2] / "plugins/filter/directory.py"
SPEC = importlib.util.spec_from_file_location("directory_filter", PATH)
directory = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(directory)

BASE = "dc=campus,dc=example"
ALICE = {"name": "alice", "password": "alice-lab-password"}


def read(ldif: str) -> list[list[tuple[str, str]]]:
    """Read an LDIF back into entries of attributes and values."""
    entries = []
    for block in ldif.strip().split("\n\n"):
        entry = []
        for line in block.splitlines():
            name, value = line.split(":", 1)
            text = base64.b64decode(value[1:]).decode() if value.startswith(":") else value[1:]
            entry.append((name, text))
        entries.append(entry)
    return entries


def test_hashes_hold_the_password_and_do_not_change():
    first = directory.hashed("secret", "uid=a")
    assert first == directory.hashed("secret", "uid=a")
    assert first != directory.hashed("secret", "uid=b")
    raw = base64.b64decode(first.removeprefix("{SSHA}"))
    assert hashlib.sha1(b"secret" + raw[20:]).digest() == raw[:20]  # noqa: S324


def test_no_password_is_in_it():
    ldif = directory.directory_ldif(BASE, [ALICE], [], "search-password")
    assert "alice-lab-password" not in ldif
    assert "search-password" not in ldif


@pytest.mark.parametrize(
    "name", ["o'brien", "Jörg", "a+b@example.org", "a,b\\c", "#x", " x ", "*)(uid=*", "a\nb: c"]
)
def test_any_name_comes_through(name):
    entries = read(directory.directory_ldif(BASE, [ALICE | {"name": name}], []))
    assert ("uid", name) in entries[-1]
    assert len(entries) == 4


@pytest.mark.parametrize(
    ("value", "escaped"),
    [("a,b", r"a\,b"), ("#a", r"\#a"), (" a ", r"\ a\ "), ("a\\b", r"a\\b"), ("a=b", r"a\=b")],
)
def test_escape(value, escaped):
    assert directory.escape(value) == escaped


@pytest.mark.parametrize(
    ("base", "attribute"),
    [
        ("dc=campus,dc=example", ("dc", "campus")),
        ("o=Högskolan i Småstad", ("o", "Högskolan i Småstad")),
        (r"O=Campus\, Inc.,c=SE", ("o", "Campus, Inc.")),
        ("ou=school,dc=example", ("ou", "school")),
        ("c=SE", ("c", "SE")),
    ],
)
def test_any_base(base, attribute):
    entry = read(directory.directory_ldif(base, [], []))[0]
    assert entry[0] == ("dn", base)
    assert attribute in entry


def test_members_are_dns_and_an_empty_group_has_the_base():
    groups = [{"name": "students", "members": ["alice"]}, {"name": "teachers", "members": []}]
    students, teachers = read(directory.directory_ldif(BASE, [ALICE], groups))[-2:]
    assert ("member", f"uid=alice,ou=people,{BASE}") in students
    assert ("member", BASE) in teachers


@pytest.mark.parametrize(
    ("base", "user"),
    [
        ("campus", ALICE),
        ("uid=x,dc=example", ALICE),
        (BASE, {"name": "alice"}),
        (BASE, ALICE | {"uid_number": 5003}),
    ],
)
def test_what_is_refused(base, user):
    with pytest.raises(AnsibleFilterError, match="directory:"):
        directory.directory_ldif(base, [user], [])
