"""The authenticator, against ldap3's directory in memory. Against a real one it is tested by the lab."""

from __future__ import annotations

import asyncio
import ssl
import threading
import unicodedata
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from types import SimpleNamespace
from typing import ClassVar
from unittest.mock import Mock

import ldap3
import pytest
from authenticator import UNREACHABLE, CampusLDAPAuthenticator, comparable, normalized
from jupyterhub import orm, roles
from jupyterhub.crypto import CryptKeeper
from jupyterhub.handlers.base import BaseHandler
from jupyterhub.spawner import Spawner, SpawnException
from jupyterhub.user import User
from ldap3.core import results
from ldap_directory import (
    BASE,
    BIND_TAKEN,
    GROUPS,
    ODD_NAMES,
    PEOPLE,
    SEARCH_DN,
    STARTTLS_TAKEN,
    Directory,
    found,
    full_server,
    no_server,
    person_dn,
    silent_server,
)
from ldapauthenticator.ldapauthenticator import TlsStrategy
from tornado import web


@pytest.fixture
def directory() -> Directory:
    """Make a directory for one test."""
    return Directory()


@pytest.fixture(params=["template", "search"])
def make(request, directory, monkeypatch):
    """Make authenticators for the directory, with a DN template and with search and bind."""
    ways = {
        "template": {"bind_dn_template": f"uid={{username}},{PEOPLE}"},
        "search": {
            "lookup_dn": True,
            "lookup_dn_search_user": SEARCH_DN,
            "lookup_dn_search_password": "search-password",
            "user_search_base": PEOPLE,
        },
    }

    def build(**more) -> CampusLDAPAuthenticator:
        settings = {"server_addresses": ["one", "two"], "role_groups": GROUPS, "admin_group": "hub-admins"}
        authenticator = CampusLDAPAuthenticator(**settings | ways[request.param] | more)
        monkeypatch.setattr(authenticator, "_open", directory.open)
        return authenticator

    build.way = request.param
    return build


async def log_in(authenticator: CampusLDAPAuthenticator, name: str, password: str | None = None):
    """Log in the way JupyterHub's login page does."""
    password = f"{name}-password" if password is None else password
    return await authenticator.get_authenticated_user(None, {"username": name, "password": password})


async def test_a_student(make):
    model = await log_in(make(), "alice")
    assert model["name"] == "alice"
    assert model["groups"] == ["students"]
    assert model["admin"] is False
    assert model["auth_state"] == {"ldap_name": "alice", "ldap_groups": [GROUPS["students"]]}


async def test_an_administrator_has_all_groups(make):
    model = await log_in(make(), "ada")
    assert model["groups"] == ["teachers", "hub-admins"]
    assert model["admin"] is True


async def test_without_an_admin_group_the_directory_says_nothing_of_admins(make):
    assert (await log_in(make(admin_group=""), "ada"))["admin"] is None
    assert (await log_in(make(admin_users={"alice"}), "alice"))["admin"] is True


async def test_uid_and_gid_of_the_directory(make):
    state = (await log_in(make(), "carol"))["auth_state"]
    assert (state["uid"], state["gid"]) == (5003, 5003)
    state = (await log_in(make(uid_attribute="", gid_attribute=""), "carol"))["auth_state"]
    assert "uid" not in state
    assert "gid" not in state


@pytest.mark.parametrize("number", ["0", "-1", "65535", "4294967295", "x", "²", "5003 "])
async def test_numbers_that_are_no_uid_are_refused(make, directory, number):
    directory.add("rooty", uidNumber=number)
    with pytest.raises(web.HTTPError, match="cannot be used"):
        await log_in(make(), "rooty")


async def test_in_no_group(make):
    with pytest.raises(web.HTTPError) as refusal:
        await log_in(make(), "eve")
    assert refusal.value.status_code == 403
    assert "groups" in refusal.value.log_message


async def test_allowed_roles(make):
    authenticator = make(allowed_roles=["teachers"])
    assert await log_in(authenticator, "tina")
    with pytest.raises(web.HTTPError, match="groups"):
        await log_in(authenticator, "alice")


async def test_users_allowed_by_name(make):
    assert (await log_in(make(allowed_users={"eve"}), "eve"))["groups"] == []


@pytest.mark.parametrize(
    ("name", "password"),
    [
        ("alice", "wrong"),
        ("alice", ""),
        ("alice", " "),
        ("alice", "\u00ad"),  # SASLprep leaves nothing of a soft hyphen
        ("alice", "\ud800"),
        ("mallory", "alice-password"),
        ("", "alice-password"),
        ("*", "alice-password"),
        ("alice)(uid=*", "alice-password"),
        ("alice,ou=people", "alice-password"),
        ("alice\0", "alice-password"),
        ("x" * 300, "alice-password"),
    ],
)
async def test_wrong_name_or_password(make, name, password):
    assert await log_in(make(), name, password) is None


@pytest.mark.parametrize("name", ODD_NAMES)
async def test_names_are_data(make, name):
    model = await log_in(make(), name)
    assert model["name"] == name.lower()
    assert model["groups"] == ["students"]


async def test_names_that_no_hub_user_can_have(make, directory):
    directory.add("../../etc")
    with pytest.raises(web.HTTPError, match="cannot be used"):
        await log_in(make(), "../../etc")


@pytest.mark.parametrize("typed", ["alice", "ALICE", " Alice "])
async def test_the_directory_says_how_a_name_is_spelt(make, typed):
    model = await log_in(make(), typed, "alice-password")
    assert model["name"] == "alice"


@pytest.mark.parametrize("form", ["NFC", "NFD"])
async def test_forms_of_unicode_are_one_name(make, form):
    model = await log_in(make(), unicodedata.normalize(form, "Jörg"), "Jörg-password")
    assert model["name"] == unicodedata.normalize("NFC", "jörg")


@pytest.mark.parametrize(
    ("name", "hub_name"), [(" Alice ", "alice"), ("JO\u0308RG", "jörg"), ("\u0130", "i\u0307"), ("ẞ", "ß")]
)
def test_normalized(name, hub_name):
    assert normalized(name) == hub_name
    assert normalized(normalized(name)) == normalized(name)


async def test_an_alias_is_no_second_account(make, directory):
    directory.add("alice", uid=["al", "alice"])
    assert (await log_in(make(), "alice"))["name"] == "alice"
    if make.way == "search":
        assert (await log_in(make(), "al", "alice-password"))["name"] == "alice"


@pytest.mark.parametrize("make", ["search"], indirect=True)
async def test_a_name_that_two_entries_have(make, directory):
    """A template could name one of them only."""
    directory.entries[f"uid=alice,ou=staff,{PEOPLE}"] = {"objectClass": "inetOrgPerson", "uid": "alice"}
    assert await log_in(make(), "alice") is None


async def test_search_filter(make):
    authenticator = make(search_filter="(&({userattr}={username})(uidNumber=*))")
    assert await log_in(authenticator, "carol")
    assert await log_in(authenticator, "alice") is None


@pytest.mark.parametrize("attribute", ["member", "uniqueMember", "memberUid"])
async def test_ways_to_be_a_member(make, directory, attribute):
    member = "eve" if attribute == "memberUid" else person_dn("eve")
    directory.entries[GROUPS["teachers"]] = {"objectClass": "top", attribute: [member]}
    assert (await log_in(make(), "eve"))["groups"] == ["teachers"]


async def test_member_of(make, directory):
    """Compared as DNs: the directory may write them in another way than the inventory."""
    directory.add("eve", memberOf=["CN=Teachers, OU=Groups, DC=Campus, DC=Example", f"cn=sports,{BASE}"])
    model = await log_in(make(membership="memberof"), "eve")
    assert model["groups"] == ["teachers"]
    assert model["auth_state"]["ldap_groups"] == [GROUPS["teachers"]]
    # The groups' own lists are not asked.
    with pytest.raises(web.HTTPError, match="groups"):
        await log_in(make(membership="memberof"), "alice")


async def test_two_hub_groups_of_one_group(make, directory):
    directory.add("eve", memberOf=GROUPS["teachers"])
    roles = {"teachers": GROUPS["teachers"], "course-1": GROUPS["teachers"].upper()}
    model = await log_in(make(membership="memberof", role_groups=roles, admin_group=""), "eve")
    assert model["groups"] == ["teachers", "course-1"]


async def test_member_of_in_ranges(make, directory):
    """Active Directory gives so many values at once and no more."""
    ranges = {
        "memberOf": ("memberOf;range=0-1", [b"cn=a", b"cn=b"]),
        "memberOf;range=2-*": ("memberOf;range=2-3", [b"cn=c", b"cn=d"]),
        "memberOf;range=4-*": ("memberOf;range=4-*", [GROUPS["teachers"].encode()]),
    }

    def says(base, _filter, attributes):
        if attributes[0] in ranges:
            name, values = ranges[attributes[0]]
            return results.RESULT_SUCCESS, [found(base, **{name: values})]
        return None

    directory.says = says
    assert (await log_in(make(membership="memberof"), "eve"))["groups"] == ["teachers"]


async def test_nested_groups_of_active_directory(make, directory):
    asked = []

    def says(base, search_filter, _attributes):
        if "member" not in search_filter:
            return None
        asked.append((base, search_filter))
        entries = [found(base)] if base == GROUPS["students"] else []
        return results.RESULT_SUCCESS, entries

    directory.says = says
    directory.add("(o,x)*")
    assert (await log_in(make(membership="ad-nested"), "(o,x)*"))["groups"] == ["students"]
    member = f"uid=\\28o\\5c,x\\29\\2a,{PEOPLE}"
    assert asked == [(dn, f"(member:1.2.840.113556.1.4.1941:={member})") for dn in GROUPS.values()]


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("cn=it,ou=groups,dc=example", "CN=IT, OU = Groups ,DC=Example", True),
        ("cn=class  1 a,dc=example", "cn=Class 1 A,dc=example", True),
        (r"cn=a\,b,dc=example", r"cn=a\2Cb,dc=example", True),
        (r"cn=J\C3\B6rg,dc=example", "cn=jo\u0308rg,dc=example", True),
        ("cn=a+sn=b,dc=example", "SN=b+CN=a,dc=example", True),
        ("cn=a,cn=b,dc=example", "cn=a+cn=b,dc=example", False),
        (r"cn=a\,cn=b,dc=example", "cn=a,cn=b,dc=example", False),
        ("cn=a,dc=example", "cn=a,dc=example,dc=org", False),
        ("cn=a,dc=example", "ou=a,dc=example", False),
        ("no DN", "No  DN", True),
        ("no DN", "cn=no DN", False),
    ],
)
def test_equal_dns(one, other, equal):
    assert (comparable(one) == comparable(other)) is equal


async def test_references_among_the_entries_are_left_out(make, directory):
    """As Active Directory gives them when the search begins at the top of the domain."""

    def says(_base, search_filter, _attributes):
        if search_filter != "(uid=alice)":
            return None
        reference = {"type": "searchResRef", "uri": ["ldap://elsewhere.example/dc=elsewhere"]}
        return results.RESULT_SUCCESS, [reference, found(person_dn("alice")), reference]

    directory.says = says
    assert await log_in(make(), "alice")


async def test_a_group_on_another_server_is_none(make, directory):
    elsewhere = f"cn=teachers,ou=groups,{BASE}"
    directory.says = lambda base, *_: (results.RESULT_REFERRAL, []) if base == elsewhere else None
    assert (await log_in(make(), "alice"))["groups"] == ["students"]


@pytest.mark.parametrize("make", ["search"], indirect=True)
async def test_people_on_another_server_are_not_found(make, directory):
    directory.says = lambda base, *_: (results.RESULT_REFERRAL, []) if base == PEOPLE else None
    assert await log_in(make(), "alice") is None


@pytest.mark.parametrize("code", [results.RESULT_BUSY, results.RESULT_TIME_LIMIT_EXCEEDED])
async def test_a_server_without_time_for_a_search(make, directory, code):
    directory.says = lambda *_: (code, [])
    with pytest.raises(web.HTTPError, match="does not answer"):
        await log_in(make(), "alice")


@pytest.mark.parametrize("make", ["search"], indirect=True)
async def test_names_of_active_directory(make, directory):
    """The sAMAccountName is the name; the userPrincipalName is another way to say it, if a site wants."""
    dn = f"CN=Doe\\, John,{PEOPLE}"
    upn = "john.doe@campus.example"
    names = {"sAMAccountName": "JDoe", "userPrincipalName": upn}
    directory.entries[dn] = {"objectClass": "user", "userPassword": "secret-one"} | names
    directory.entries[GROUPS["students"]]["member"].append(dn)
    settings = {"user_attribute": "sAMAccountName"}
    assert (await log_in(make(**settings), "jdoe", "secret-one"))["name"] == "jdoe"
    assert await log_in(make(**settings), upn, "secret-one") is None
    settings["lookup_dn_search_filter"] = "(|({login_attr}={login})(userPrincipalName={login}))"
    for login in ("JDOE", upn):
        model = await log_in(make(**settings), login, "secret-one")
        assert (model["name"], model["groups"]) == ("jdoe", ["students"])
        assert model["auth_state"]["ldap_name"] == "JDoe"


async def test_the_next_server_is_asked_and_remembered(make, directory):
    directory.down = {"one"}
    authenticator = make()
    assert await log_in(authenticator, "alice")
    assert directory.asked[:2] == ["one", "two"]
    directory.asked.clear()
    assert await log_in(authenticator, "alice")
    assert set(directory.asked) == {"two"}


async def test_a_directory_that_is_down(make, directory):
    directory.down = {"one", "two"}
    with pytest.raises(web.HTTPError) as trouble:
        await log_in(make(), "alice")
    assert trouble.value.status_code == 503
    assert "does not answer" in trouble.value.log_message


async def test_a_server_that_hangs_halfway_is_left_for_the_next(make, directory):
    directory.hung = {"one"}
    authenticator = make()
    assert await log_in(authenticator, "alice")
    directory.asked.clear()
    assert await log_in(authenticator, "alice")
    assert set(directory.asked) == {"two"}
    directory.hung = {"two"}
    assert await log_in(authenticator, "alice")


async def test_all_servers_hang_halfway(make, directory):
    directory.hung = {"one", "two"}
    with pytest.raises(web.HTTPError, match="does not answer"):
        await log_in(make(), "alice")
    # Once each, and no more: the directory may count how often a password is tried.
    assert directory.asked == ["one", "two"]


@pytest.mark.parametrize(
    "code", [results.RESULT_BUSY, results.RESULT_UNAVAILABLE, results.RESULT_REFERRAL, results.RESULT_OTHER]
)
async def test_a_server_that_takes_no_bind_is_left_for_the_next(make, directory, code):
    directory.bind_codes = {"one": code}
    assert await log_in(make(), "alice")


@pytest.mark.parametrize(
    ("code", "words"),
    [(results.RESULT_UNAVAILABLE, "does not answer"), (results.RESULT_OTHER, "refuses the hub's questions")],
)
async def test_no_server_takes_a_bind(make, directory, code, words):
    directory.bind_codes = {"one": code, "two": results.RESULT_UNAVAILABLE}
    with pytest.raises(web.HTTPError, match=words):
        await log_in(make(), "alice")


@pytest.mark.parametrize("make", ["template"], indirect=True)
async def test_who_is_on_another_server_is_not_found(make, directory):
    directory.bind_codes = dict.fromkeys(("one", "two"), results.RESULT_REFERRAL)
    assert await log_in(make(), "alice") is None


@pytest.mark.parametrize("make", ["search"], indirect=True)
async def test_a_search_account_that_is_refused(make):
    with pytest.raises(web.HTTPError, match="administrators"):
        await log_in(make(lookup_dn_search_password="old"), "alice")


# Long enough for a busy machine, and far from what a login may take.
HANGS = 20
# The time-out that ends the wait: with the other one, or with none, the test fails. Answers are waited for in
# whole seconds, because ldap3 tells the kernel so.
ANSWER, CONNECT = (
    {"answer_timeout": 1, "connect_timeout": 3 * HANGS},
    {"connect_timeout": 0.3, "answer_timeout": 3 * HANGS},
)
# Servers that are no use, the way to speak to them, and what the log says in the end.
USELESS = {
    "LDAPS, no handshake": (silent_server, "on_connect", ANSWER, "handshake operation timed out"),
    "StartTLS, no answer": (silent_server, "before_bind", ANSWER, "receiving data: timed out"),
    "StartTLS, no handshake": (
        partial(silent_server, STARTTLS_TAKEN),
        "before_bind",
        ANSWER,
        "handshake operation timed out",
    ),
    "plain, no answer": (silent_server, "insecure", ANSWER, "receiving data: timed out"),
    "plain, a bind and no more": (
        partial(silent_server, BIND_TAKEN),
        "insecure",
        ANSWER,
        "receiving data: timed out",
    ),
    "no connection": (full_server, "on_connect", CONNECT, "while opening: timed out"),
    "refused": (no_server, "on_connect", {}, "Connection refused"),
}


@pytest.fixture(params=USELESS.values(), ids=USELESS)
def useless(request):
    """Be a real server that is no use; its address, how it is asked, and what becomes of it."""
    serve: Callable[[], AbstractContextManager[str]]
    serve, strategy, timeouts, reason = request.param
    with serve() as address:
        yield address, {"tls_strategy": TlsStrategy[strategy], **timeouts}, reason


@pytest.fixture
def make_real(make, directory, monkeypatch):
    """Make authenticators that open real connections, but for the server "two", which is in memory."""

    def build(**settings) -> CampusLDAPAuthenticator:
        authenticator = make(**settings)
        really = partial(CampusLDAPAuthenticator._open, authenticator)
        monkeypatch.setattr(
            authenticator,
            "_open",
            lambda address, *who: (directory.open if address == "two" else really)(address, *who),
        )
        return authenticator

    return build


@pytest.mark.parametrize("make", ["search"], indirect=True)
async def test_a_server_that_is_silent_is_waited_for_no_longer_than_told(make_real, useless):
    address, settings, reason = useless
    authenticator = make_real(server_addresses=[address], **settings)
    async with asyncio.timeout(HANGS):
        with pytest.raises(web.HTTPError) as trouble:
            await log_in(authenticator, "alice")
    assert (trouble.value.status_code, trouble.value.log_message) == (503, UNREACHABLE)
    assert reason in str(trouble.value.__cause__)


@pytest.mark.parametrize("make", ["search"], indirect=True)
async def test_after_a_server_that_is_silent_the_next_one_answers(make_real, useless, directory):
    address, settings, _ = useless
    authenticator = make_real(server_addresses=[address, "two"], **settings)
    async with asyncio.timeout(HANGS):
        assert (await log_in(authenticator, "alice"))["groups"] == ["students"]
    assert list(authenticator._failures) == [address]
    assert set(directory.asked) == {"two"}
    # And stays the first, or each login would wait.
    assert authenticator._addresses == ["two", address]


async def test_the_hub_goes_on_while_the_directory_is_slow(make, directory):
    release = threading.Event()
    authenticator = make()
    opened = authenticator._open
    authenticator._open = lambda *args: (release.wait(10), opened(*args))[1]
    login = asyncio.create_task(log_in(authenticator, "alice"))
    await asyncio.sleep(0.05)
    assert not login.done()
    release.set()
    assert await login
    assert threading.current_thread().name not in directory.threads


class OwnServer(Spawner):
    """A server that only notes who may start it, and with which groups."""

    started: ClassVar[list[set[str]]] = []

    async def start(self):
        """Note the groups, and be no server."""
        self.started.append({group.name for group in self.user.groups})
        raise SpawnException("That is all.", reason="test")

    async def stop(self, now=False):
        """Have nothing to stop."""

    async def poll(self):
        """Never run."""
        return 0


class Hub:
    """As much of JupyterHub as lets a user start a server."""

    def __init__(self, authenticator: CampusLDAPAuthenticator) -> None:
        """Make a database with JupyterHub's own entries, and take the place of a request."""
        CryptKeeper.instance().keys = [bytes(32)]
        authenticator.enable_auth_state = True
        self.authenticator = authenticator
        self.db = orm.new_session_factory("sqlite:///:memory:")()
        for role in roles.get_default_roles():
            roles.create_role(self.db, role)
        self.db.add(orm.OAuthClient(identifier="jupyterhub", secret="none"))

    def user(self, name: str, **more) -> User:
        """Add a user."""
        entry = orm.User(name=name, **more)
        self.db.add(entry)
        self.db.commit()
        settings = {"authenticator": self.authenticator, "spawner_class": OwnServer, "base_url": "/"}
        hub = SimpleNamespace(base_url="/hub/", api_url="http://hub/hub/api", url="http://hub/hub/")
        return User(entry, settings | {"config": None, "hub": hub}, db=self.db)

    async def auth_to_user(self, model: dict, user: User) -> User:
        """Write what the directory says as JupyterHub does."""
        return await BaseHandler.auth_to_user(self, model, user)

    async def start(self, user: User) -> set[str] | str:
        """Start a server; the groups that it has, or the sentence of the spawn page."""
        OwnServer.started.clear()
        with pytest.raises(SpawnException) as end:
            await user.spawn(handler=self)
        assert user.spawners[""].pending is None
        return next(iter(OwnServer.started), None) or end.value.jupyterhub_message


async def test_refresh(make, directory):
    authenticator = make()
    hub = Hub(authenticator)
    alice, eve, gone = (hub.user(name) for name in ("alice", "eve", "gone"))
    if make.way == "template":
        assert await authenticator.refresh_user(eve) is True
        return
    assert (await authenticator.refresh_user(alice))["groups"] == ["students"]
    assert await authenticator.refresh_user(eve) is False
    assert await authenticator.refresh_user(gone) is False
    directory.down = {"one", "two"}
    assert await authenticator.refresh_user(alice) is True


@pytest.mark.parametrize("make", ["search"], indirect=True)
async def test_who_has_to_go_leaves_no_rights_behind(make):
    """Neither in groups nor as an administrator, whose tokens JupyterHub leaves alone."""
    hub = Hub(make())
    eve = hub.user("eve", admin=True)
    eve.sync_groups(["teachers", "hub-admins"])
    assert await hub.authenticator.refresh_user(eve, hub) is False
    assert (list(eve.groups), eve.admin) == ([], False)


@pytest.mark.parametrize("make", ["search"], indirect=True)
async def test_a_start_asks_for_the_groups_again(make, directory):
    hub = Hub(make())
    alice = hub.user("alice", admin=True)
    assert await hub.start(alice) == {"students"}
    assert alice.admin is False
    directory.entries[GROUPS["teachers"]]["member"].append(person_dn("alice"))
    directory.add("alice", uidNumber="5001", gidNumber="5001")
    assert await hub.start(alice) == {"students", "teachers"}
    assert (await alice.get_auth_state())["uid"] == 5001


async def test_a_start_while_the_directory_is_down(make, directory):
    """It goes on with the groups that the hub knows."""
    hub = Hub(make())
    alice = hub.user("alice")
    alice.sync_groups(["students", "teachers"])
    directory.down = {"one", "two"}
    assert await hub.start(alice) == {"students", "teachers"}


@pytest.mark.parametrize("make", ["search"], indirect=True)
async def test_a_start_while_the_directory_is_slow(make, directory):
    release = threading.Event()
    hub = Hub(make(refresh_timeout=0.05))
    opened = hub.authenticator._open
    hub.authenticator._open = lambda *args: (release.wait(10), opened(*args))[1]
    alice = hub.user("alice")
    alice.sync_groups(["teachers"])
    assert await hub.start(alice) == {"teachers"}
    release.set()


async def test_a_start_without_a_search_account(make):
    """Nobody can be asked about without a password, nor anonymously: that may see less than there is."""
    hub = Hub(make(lookup_dn_search_user=""))
    eve = hub.user("eve")
    eve.sync_groups(["teachers"])
    assert await hub.start(eve) == {"teachers"}


@pytest.mark.parametrize("make", ["search"], indirect=True)
@pytest.mark.parametrize("name", ["eve", "gone"])
async def test_who_is_in_no_group_any_more_starts_nothing(make, name):
    hub = Hub(make())
    user = hub.user(name)
    user.sync_groups(["students"])
    assert "no longer" in await hub.start(user)
    assert list(user.groups) == []


@pytest.mark.parametrize("make", ["search"], indirect=True)
async def test_a_start_of_who_is_called_like_somebody_else_by_now(make, directory):
    """The entry that is found has to be the user's: an alias may have been given to another person."""
    directory.add("alice", uid=["alice", "al"])
    hub = Hub(make())
    assert "no longer" in await hub.start(hub.user("al"))


@pytest.mark.parametrize("make", ["search"], indirect=True)
async def test_a_start_with_an_entry_that_cannot_be_used(make, directory):
    directory.add("alice", uidNumber="0")
    hub = Hub(make())
    assert "administrators" in await hub.start(hub.user("alice"))


@pytest.mark.parametrize("make", ["search"], indirect=True)
async def test_users_allowed_by_name_are_the_ones_named(make):
    """JupyterHub would let in all whom it knows as soon as one is named."""
    hub = Hub(make(allowed_users={"eve"}))
    eve, gone = hub.user("eve"), hub.user("gone")
    for user in (eve, gone):
        hub.authenticator.add_user(user)
    assert hub.authenticator.allowed_users == {"eve"}


def test_certificates_are_verified_unless_told_otherwise():
    authenticator = CampusLDAPAuthenticator(server_addresses=["ldap.example.org"])
    tls = authenticator._tls("ldap.example.org")
    assert (tls.validate, tls.sni) == (ssl.CERT_REQUIRED, "ldap.example.org")
    assert authenticator._tls("192.0.2.1").sni is None
    authenticator.tls_kwargs = {"validate": ssl.CERT_NONE}
    assert authenticator._tls("ldap.example.org").validate == ssl.CERT_NONE


def test_what_ldap3_must_not_do_by_itself(monkeypatch):
    """Follow referrals with the password, put up with half a list, or wait for ever."""
    made = Mock()
    monkeypatch.setattr(ldap3, "Connection", made)
    CampusLDAPAuthenticator(answer_timeout=7)._open("ldap.example.org", "cn=a", "secret-one")
    settings = made.call_args.kwargs
    assert settings["auto_referrals"] is False
    assert settings["auto_range"] is False
    assert settings["receive_timeout"] == 7


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("directory", ("directory", 0)),
        ("directory:1636", ("directory", 1636)),
        ("192.0.2.1:636", ("192.0.2.1", 636)),
        ("2001:db8::1", ("2001:db8::1", 0)),
        ("[2001:db8::1]:636", ("2001:db8::1", 636)),
        ("[2001:db8::1]", ("2001:db8::1", 0)),
    ],
)
def test_addresses(address, parts):
    assert CampusLDAPAuthenticator._split(address) == parts


@pytest.mark.parametrize(("strategy", "port"), [("on_connect", 636), ("before_bind", 389)])
def test_ports(strategy, port):
    assert CampusLDAPAuthenticator(tls_strategy=TlsStrategy[strategy]).server_port == port


@pytest.mark.parametrize(
    ("host", "sni"),
    [
        ("dc1.example.org", "dc1.example.org"),
        ("ldaps://dc1.example.org", "dc1.example.org"),
        ("ldaps://dc1.example.org:636", "dc1.example.org"),
        ("ldaps://192.0.2.1:636", None),
        ("192.0.2.1", None),
        ("ldaps://[2001:db8::1]", None),
    ],
)
def test_tls_names_the_server_without_a_scheme(host, sni):
    """Active Directory ends a connection that asks for `ldaps://...`; OpenLDAP takes it."""
    assert CampusLDAPAuthenticator()._tls(host).sni == sni
