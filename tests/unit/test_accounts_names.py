"""Names, IDs and files of the accounts service, without its HTTP side."""

import contextlib
import re
import unicodedata

import accounts
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

# Visible characters; few of them where names should be alike.
VISIBLE = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=80)
ALIKE = st.text("aA1-_.@'ö", min_size=1, max_size=6)
PORTABLE = re.compile(r"[a-z_][a-z0-9_.-]{0,31}")


def refused(function, *arguments):
    """Returns the status with which a call is refused."""
    with pytest.raises(accounts.RefusedError) as caught:
        function(*arguments)
    assert caught.value.reason.endswith(".")
    return caught.value.status


def name_of(username, taken=()):
    """Returns the account's name that the service would give."""
    return accounts.portable_name(accounts.clean_name(username), taken.__contains__)


@pytest.mark.parametrize("name", ["alice", "a", "_x", "j.doe", "anna-lena", "x" * 32, "u2"])
def test_portable_names_stay(name):
    assert name_of(name) == name


@pytest.mark.parametrize(
    ("name", "readable"),
    [
        ("o'brien", "o-brien"),
        ("Jörg", "jorg"),
        ("a.b+c@example.org", "a.b-c-example.org"),
        ("../../etc", "etc"),
        ("-rf", "rf"),
        ("12345", "u12345"),
        ("Alice", "alice"),
        ("张伟", "user"),
        ("..", "user"),
        ("$(reboot)", "reboot"),
        ("x" * 33, "x" * 19),
        ("o-brien-0123456789ab", "o-brien-0123456789a"),
    ],
)
def test_other_names_are_derived(name, readable):
    assert re.fullmatch(re.escape(readable) + "-[0-9a-f]{12}", name_of(name))


@pytest.mark.parametrize(
    "name", ["", "  ", "x" * 300, "ö" * 128, "a\nb", "a\0b", "a\u202eb", "a\u2028b", "\ud800", 7, None]
)
def test_impossible_names_are_refused(name):
    assert refused(accounts.clean_name, name) == 400


def test_two_spellings_of_the_same_characters_are_one_name():
    assert accounts.clean_name(unicodedata.normalize("NFD", "Jörg")) == accounts.clean_name("Jörg")


def test_nobody_can_be_called_like_a_derived_name():
    derived = name_of("o'brien")
    assert name_of(derived) != derived


def test_a_taken_name_is_derived():
    assert name_of("students", {"students"}) != "students"


@given(st.text(max_size=80))
def test_every_name_is_refused_or_portable(name):
    with contextlib.suppress(accounts.RefusedError):
        assert PORTABLE.fullmatch(name_of(name))


@given(ALIKE, ALIKE)
def test_two_names_never_share_an_account(one, other):
    assume(one != other)
    assert name_of(one) != name_of(other)


@given(VISIBLE, st.integers(1000, 2**31 - 1))
def test_a_line_is_short_and_reads_back(name, uid):
    username = accounts.clean_name(name[:60])
    account = accounts.Account(username, accounts.derived_name(username), uid, uid)
    line = account.line()
    assert len(line) < 1024
    assert line.count(":") == 6
    assert line.count("\n") == 1
    index = accounts.Index(accounts.Settings(), line.encode())
    assert index.by_username == {username: account}


@pytest.mark.parametrize("value", [0, 1, 999, 65534, 65535, 2**31, 2**32 - 1, -1, "1000", 1.5, True])
def test_ids_of_the_system_are_refused(value):
    assert refused(accounts.clean_id, value, "UID") == 400


@pytest.mark.parametrize("value", [1000, 5003, 100000, 2**31 - 1])
def test_ids_of_people_are_taken(value):
    assert accounts.clean_id(value, "UID") == value


@pytest.mark.parametrize(
    "content",
    [b"alice:x:1:2\n", b"alice:x:one:2:alice:/homes/alice:/bin/sh\n", b"\0\0\0\n"],
)
def test_a_malformed_line_stops_everything(content):
    assert refused(accounts.Index, accounts.Settings(), content) == 503


def test_a_uid_that_is_there_twice_stops_everything():
    lines = accounts.Account("a", "a", 5000, 5000).line() + accounts.Account("b", "b", 5000, 5000).line()
    assert refused(accounts.Index, accounts.Settings(), lines.encode()) == 503


@pytest.mark.parametrize(
    "settings",
    [
        {"primary_group": "both"},
        {"uid_min": 500},
        {"uid_min": 3000, "uid_max": 2000},
        {"gid_min": 100500, "gid_max": 100600},
        {"nfs_address": "storage"},
    ],
)
def test_contradicting_settings_are_refused(settings):
    with pytest.raises(ValueError, match=r"\w"):
        accounts.Settings(**settings)


def test_settings_come_from_the_command_line_and_the_environment(monkeypatch):
    monkeypatch.setenv("ACCOUNTS_UID_MIN", "200000")
    monkeypatch.setenv("ACCOUNTS_ROLE_GROUPS", "pupils, staff-members")
    settings = accounts.Settings.from_arguments(["--port", "9000"])
    assert (settings.uid_min, settings.port, settings.roles) == (200000, 9000, ["pupils", "staff-members"])
