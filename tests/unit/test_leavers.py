"""Who has left, against a directory in memory; and what a directory in trouble must never be taken for."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import leavers
import pytest
from authenticator import CampusLDAPAuthenticator
from ldap3.core import results
from ldap_directory import COURSES, GROUPS, ODD_NAMES, PEOPLE, SEARCH_DN, Directory, found, person_dn
from leavers import GONE, NOT_ALLOWED, PRESENT
from tornado import web

# As the hub's configuration has them: to be in a course is no leave to log in.
WITH_COURSES = {"role_groups": GROUPS | COURSES, "allowed_roles": list(GROUPS)}
STUDENTS_OF_ALGO1 = COURSES["nbgrader-algo1"]
WAYS = {
    "template": {"bind_dn_template": [f"uid={{username}},ou=nobody,{PEOPLE}", f"uid={{username}},{PEOPLE}"]},
    "search": {
        "lookup_dn": True,
        "lookup_dn_search_user": SEARCH_DN,
        "lookup_dn_search_password": "search-password",
        "user_search_base": PEOPLE,
    },
}


@pytest.fixture
def directory() -> Directory:
    """Make a directory for one test."""
    return Directory()


@pytest.fixture(params=["search", "template"])
def make(request, directory, monkeypatch):
    """Make authenticators for the directory, which finds users by searches for some of them, or by DNs."""
    monkeypatch.setattr(leavers, "BATCH", 4)

    def build(**more) -> CampusLDAPAuthenticator:
        settings = {"server_addresses": ["one", "two"], "role_groups": GROUPS}
        authenticator = CampusLDAPAuthenticator(**settings | WAYS[request.param] | more)
        monkeypatch.setattr(authenticator, "_open", directory.open)
        return authenticator

    build.way = request.param
    return build


async def test_present_gone_and_not_allowed_are_told_apart(make):
    said = await leavers.sort(make(), ["alice", "mallory", "eve", "tina", "ada"])
    assert said == {"alice": PRESENT, "mallory": GONE, "eve": NOT_ALLOWED, "tina": PRESENT, "ada": PRESENT}


async def test_names_are_data(make):
    """Asked for as the hub calls them, in lower case."""
    names = [name.lower() for name in ODD_NAMES]
    assert await leavers.sort(make(), names) == dict.fromkeys(names, PRESENT)
    assert await leavers.sort(make(), ["alice", "a*", "*)(uid=*))"]) == {
        "alice": PRESENT,
        "a*": GONE,
        "*)(uid=*))": GONE,
    }


async def test_one_connection_for_all(make, directory):
    await leavers.sort(make(), ["alice", "tina", "ada", "carol", *(f"gone-{number}" for number in range(40))])
    assert directory.asked == ["one"]


async def test_nobody_to_ask_about(make):
    assert await leavers.sort(make(), []) == {}


async def test_allowed_by_name_or_by_some_groups_only(make):
    assert (await leavers.sort(make(allowed_users={"eve"}), ["eve"])) == {"eve": PRESENT}
    said = await leavers.sort(make(allowed_roles=["teachers"]), ["alice", "tina"])
    assert said == {"alice": NOT_ALLOWED, "tina": PRESENT}


async def test_groups_are_asked_with_the_directorys_spelling(make, directory):
    """As at a login: `memberUid` is compared letter by letter (RFC 2307), and the hub's names are folded."""
    directory.add("Zoe")

    def says(base, search_filter, _):
        if base != GROUPS["students"] or "memberUid" not in search_filter:
            return None
        exact = "(memberUid=Zoe)" in search_filter
        return results.RESULT_SUCCESS, [found(base)] if exact else []

    directory.says = says
    assert await leavers.sort(make(), ["zoe", "tina"]) == {"zoe": PRESENT, "tina": PRESENT}


@pytest.mark.parametrize("make", ["search"], indirect=True)
async def test_what_does_not_fit_into_a_page_is_asked_for(make, monkeypatch):
    monkeypatch.setattr("authenticator.PAGE", 1)
    said = await leavers.sort(make(), ["alice", "tina", "ada", "mallory"])
    assert said == {"alice": PRESENT, "tina": PRESENT, "ada": PRESENT, "mallory": GONE}


async def test_member_of(make, directory):
    directory.add("eve", memberOf=[GROUPS["teachers"]])
    said = await leavers.sort(make(membership="memberof"), ["eve", "alice", "mallory"])
    assert said == {"eve": PRESENT, "alice": NOT_ALLOWED, "mallory": GONE}


async def test_a_search_filter_leaves_users_out(make):
    authenticator = make(search_filter="(&({userattr}={username})(uidNumber=*))")
    assert await leavers.sort(authenticator, ["carol", "alice", "mallory"]) == {
        "carol": PRESENT,
        "alice": NOT_ALLOWED,
        "mallory": GONE,
    }


async def test_a_user_with_another_name_at_the_hub(make):
    authenticator = make(username_map={"alice": "wonder"})
    assert await leavers.sort(authenticator, ["wonder", "tina"]) == {"wonder": PRESENT, "tina": PRESENT}


@pytest.mark.parametrize("make", ["search"], indirect=True)
async def test_in_doubt_a_user_is_present(make, directory):
    """An alias, and a name that two entries have: neither could log in, and neither has left."""
    directory.add("alice", uid=["al", "alice"])
    directory.entries[f"uid=tina,ou=staff,{PEOPLE}"] = {"objectClass": "inetOrgPerson", "uid": "tina"}
    assert await leavers.sort(make(), ["al", "tina"]) == {"al": PRESENT, "tina": PRESENT}


# --- groups of courses


def add_courses(directory: Directory) -> None:
    """Add the courses' groups; eve, who is in no other group, is in one of them."""
    for dn in COURSES.values():
        members = [person_dn("eve")] if dn == STUDENTS_OF_ALGO1 else []
        directory.entries[dn] = {"objectClass": "groupOfNames", "member": members}
    directory.add("eve", memberOf=[STUDENTS_OF_ALGO1])
    for name, group in (("tina", "teachers"), ("alice", "students")):
        directory.add(name, memberOf=[GROUPS[group]])


@pytest.mark.parametrize("membership", ["member", "memberof"])
async def test_a_course_whose_group_is_gone_stops_nothing(make, directory, membership):
    add_courses(directory)
    del directory.entries[STUDENTS_OF_ALGO1]
    authenticator = make(**WITH_COURSES, membership=membership)
    said = await leavers.sort(authenticator, ["alice", "tina", "eve", "mallory"])
    assert said == {"alice": PRESENT, "tina": PRESENT, "eve": NOT_ALLOWED, "mallory": GONE}


async def test_a_course_whose_group_may_not_be_read_stops_nothing(make, directory):
    add_courses(directory)
    refused = results.RESULT_INSUFFICIENT_ACCESS_RIGHTS, []
    directory.says = lambda base, *_: refused if base in COURSES.values() else None
    said = await leavers.sort(make(**WITH_COURSES), ["alice", "tina", "mallory"])
    assert said == {"alice": PRESENT, "tina": PRESENT, "mallory": GONE}


async def test_a_group_that_lets_people_in_is_needed_all_the_same(make, directory):
    add_courses(directory)
    # By the name of a role, and by JupyterHub's own way to allow a group.
    for dn, allowed in (
        (GROUPS["teachers"], {}),
        (STUDENTS_OF_ALGO1, {"allowed_groups": [STUDENTS_OF_ALGO1]}),
    ):
        entry = directory.entries.pop(dn)
        await fails(make(**WITH_COURSES, **allowed), dn.partition(",")[0])
        directory.entries[dn] = entry


@pytest.mark.parametrize("membership", ["member", "ad-nested"])
async def test_courses_are_asked_about_at_no_time(make, directory, membership):
    """Or it were two questions for each course and user."""
    add_courses(directory)
    asked = []

    def says(base, search_filter, _):
        asked.append(base)
        if "1.2.840.113556" not in search_filter:
            return None
        return results.RESULT_SUCCESS, [found(base)] if base == GROUPS["students"] else []

    directory.says = says
    said = await leavers.sort(make(**WITH_COURSES, membership=membership), ["alice", "tina"])
    assert said == {"alice": PRESENT, "tina": PRESENT}
    groups = [base for base in asked if "ou=groups" in base]
    # Whether it is there, and for each user.
    assert sorted(groups) == sorted([*GROUPS.values()] * 3)


@pytest.mark.parametrize(
    ("settings", "verdict"),
    [
        ({}, NOT_ALLOWED),
        ({"admin_group": "nbgrader-algo1"}, NOT_ALLOWED),
        ({"allowed_roles": []}, PRESENT),
        ({"allowed_roles": ["teachers", "nbgrader-algo1"]}, PRESENT),
        ({"allowed_groups": [STUDENTS_OF_ALGO1]}, PRESENT),
        # Letter by letter, as a login has it.
        ({"allowed_groups": [STUDENTS_OF_ALGO1.upper()]}, NOT_ALLOWED),
        ({"allowed_users": {"eve"}}, PRESENT),
        ({"allow_all": True}, PRESENT),
    ],
)
@pytest.mark.parametrize("membership", ["member", "memberof"])
async def test_who_is_in_a_course_only_is_what_a_login_says(make, directory, membership, settings, verdict):
    add_courses(directory)
    authenticator = make(**WITH_COURSES | settings, membership=membership)
    login = {"username": "eve", "password": "eve-password"}
    refused = (
        nullcontext() if verdict == PRESENT else pytest.raises(web.HTTPError, match="in none of the groups")
    )
    with refused:
        assert (await authenticator.get_authenticated_user(None, login))["name"] == "eve"
    assert (await leavers.sort(authenticator, ["eve", "tina"]))["eve"] == verdict


@pytest.mark.parametrize(
    ("settings", "verdict"),
    [
        # JupyterHub brings them into its own spelling, and adds administrators, when it starts.
        ({"allowed_users": {" Eve "}}, PRESENT),
        ({"allowed_users": {"somebody"}, "admin_users": {"EVE"}}, PRESENT),
        ({"admin_users": {"eve"}}, NOT_ALLOWED),
        # It also adds all whom it knows.
        ({"allow_existing_users": True}, PRESENT),
    ],
)
async def test_whom_the_hub_lets_in_by_name_has_not_left(make, settings, verdict):
    said = await leavers.sort(make(**settings), ["eve", "tina", "mallory"])
    assert said == {"eve": verdict, "tina": PRESENT, "mallory": GONE}


# --- a directory in trouble


async def fails(authenticator: CampusLDAPAuthenticator, sentence: str) -> None:
    """Asking ends with a sentence, and with no answer."""
    with pytest.raises(leavers.CannotAskError, match=sentence) as raised:
        await leavers.sort(authenticator, ["alice", "tina", "mallory"])
    assert str(raised.value).endswith(".")


async def test_no_server_answers(make, directory):
    directory.down = {"one", "two"}
    await fails(make(), "does not answer")


async def test_a_server_that_fails_halfway_is_left_for_the_next_one(make, directory):
    directory.hung = {"one"}
    said = await leavers.sort(make(), ["alice", "tina", "mallory"])
    assert said == {"alice": PRESENT, "tina": PRESENT, "mallory": GONE}
    directory.hung = {"one", "two"}
    await fails(make(), "does not answer")


@pytest.mark.parametrize(
    "code",
    [
        results.RESULT_OPERATIONS_ERROR,
        results.RESULT_SIZE_LIMIT_EXCEEDED,
        results.RESULT_REFERRAL,
        results.RESULT_INSUFFICIENT_ACCESS_RIGHTS,
        results.RESULT_ADMIN_LIMIT_EXCEEDED,
    ],
)
@pytest.mark.parametrize("below", [PEOPLE, GROUPS["students"]])
async def test_half_an_answer_is_none(make, directory, code, below):
    directory.says = lambda base, *_: (code, []) if base.endswith(below) else None
    await fails(make(), "cannot be asked who has left")


async def test_a_group_that_is_not_there_has_not_lost_its_members(make, directory):
    del directory.entries[GROUPS["teachers"]]
    await fails(make(), "cn=teachers")


@pytest.mark.parametrize("make", ["search"], indirect=True)
async def test_a_base_that_is_not_there_has_not_lost_its_users(make, directory):
    directory.says = lambda base, *_: (
        (results.RESULT_NO_SUCH_OBJECT, []) if base.lower() == PEOPLE.lower() else None
    )
    await fails(make(), "cannot be asked who has left")


async def test_a_directory_that_shows_nobody(make, directory):
    """As one does to those who may not read it."""
    for name in ("alice", "tina"):
        del directory.entries[person_dn(name)]
    await fails(make(), "shows none of 3 users")


@pytest.mark.parametrize("make", ["template"], indirect=True)
async def test_an_anonymous_question_that_is_refused(make, directory, monkeypatch):
    directory.bind_codes = {"one": results.RESULT_INAPPROPRIATE_AUTHENTICATION}
    await fails(make(), "no account that may search")
    directory.bind_codes = {}
    directory.says = lambda *_: (results.RESULT_INSUFFICIENT_ACCESS_RIGHTS, [])
    await fails(make(), "no account that may search")


@pytest.mark.parametrize("make", ["search"], indirect=True)
async def test_a_search_account_that_is_refused(make):
    await fails(make(lookup_dn_search_password="wrong"), "refuses the account that looks users up")


# --- as it is run


def test_the_hubs_own_configuration(tmp_path: Path):
    config = tmp_path / "jupyterhub_config.py"
    config.write_text(
        "c = get_config()\n"
        "c.JupyterHub.authenticator_class = 'authenticator.CampusLDAPAuthenticator'\n"
        "c.CampusLDAPAuthenticator.server_addresses = ['ldap.test']\n"
    )
    assert leavers.load_authenticator(config).server_addresses == ["ldap.test"]
    config.write_text(
        "c = get_config()\nc.JupyterHub.authenticator_class = 'jupyterhub.auth.PAMAuthenticator'\n"
    )
    with pytest.raises(leavers.CannotAskError, match="PAMAuthenticator"):
        leavers.load_authenticator(config)


def test_the_program_ends_with_a_sentence(tmp_path: Path, root: Path):
    config = tmp_path / "jupyterhub_config.py"
    config.write_text(
        "c = get_config()\n"
        "c.JupyterHub.authenticator_class = 'authenticator.CampusLDAPAuthenticator'\n"
        "c.CampusLDAPAuthenticator.server_addresses = ['127.0.0.1:1']\n"
        "c.LDAPAuthenticator.server_address = 'ldap.test'\n"
        "c.LDAPAuthenticator.bind_dn_template = ['uid={username}']\n"
        f"c.CampusLDAPAuthenticator.role_groups = {{'students': '{GROUPS['students']}'}}\n"
    )
    code = f"import leavers, pathlib; leavers.CONFIG = pathlib.Path({str(config)!r}); leavers.main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root / "files",
        input=json.dumps(["alice"]),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("The directory does not answer: ")
    assert done.stderr.count("\n") == 1
