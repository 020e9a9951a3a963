"""A directory in memory: what ldap3 has for tests, and troubles that it has not."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import ldap3
from authenticator import PAGED_RESULTS
from ldap3.core import results
from ldap3.core.exceptions import LDAPSocketOpenError, LDAPSocketReceiveError
from ldap3.utils.asn1 import compute_ber_size
from ldap3.utils.dn import escape_rdn

BASE = "dc=campus,dc=example"
PEOPLE = f"ou=people,{BASE}"
SEARCH_DN = f"cn=search,{BASE}"
GROUPS = {name: f"cn={name},ou=groups,{BASE}" for name in ("students", "teachers", "hub-admins")}
# Groups that two courses have of the table `courses`, and nobody in them.
COURSES = {
    f"{kind}-{course}": f"cn={course}-{kind},ou=groups,{BASE}"
    for course in ("algo1", "algo2")
    for kind in ("nbgrader", "formgrade")
}
# "Success", as the answer to a bind and to StartTLS (RFC 4511, 4.2.2 and 4.12).
BIND_TAKEN = bytes.fromhex("6107 0a0100 0400 0400")
STARTTLS_TAKEN = bytes.fromhex("7807 0a0100 0400 0400")
ODD_NAMES = ["o'brien", "Jörg", "a.b+c@example.org", "*)(uid=*", "a,b\\c", "-rf", "root", "12345", "#hash"]


def person_dn(name: str) -> str:
    """Return the DN of a person."""
    return f"uid={escape_rdn(name)},{PEOPLE}"


class Directory:
    """A directory in memory, behind one or more addresses."""

    def __init__(self) -> None:
        """Fill it with the demo users and some odd ones."""
        self.down: set[str] = set()
        # Servers that take a connection and answer no search.
        self.hung: set[str] = set()
        # Servers that answer every bind with a result code.
        self.bind_codes: dict[str, int] = {}
        # What ldap3's directory in memory cannot do: base, filter and attributes → result code and entries.
        self.says: Callable[[str, str, list[str]], tuple[int, list[dict]] | None] = lambda *_: None
        self.asked: list[str] = []
        self.threads: set[str] = set()
        self.entries = {SEARCH_DN: {"objectClass": "organizationalRole", "userPassword": "search-password"}}
        for name in ["alice", "tina", "ada", "eve", *ODD_NAMES]:
            self.add(name)
        self.add("carol", uidNumber="5003", gidNumber="5003")
        members = {
            "students": ["alice", "carol", *ODD_NAMES],
            "teachers": ["tina", "ada"],
            "hub-admins": ["ada"],
        }
        for group, names in members.items():
            self.entries[GROUPS[group]] = {
                "objectClass": "groupOfNames",
                "member": [person_dn(name) for name in names],
            }

    def add(self, name: str, **attributes: str | list[str]) -> None:
        """Add a person whose password is the name and `-password`."""
        entry = {"objectClass": "inetOrgPerson", "uid": name, "userPassword": f"{name}-password"}
        self.entries[person_dn(name)] = entry | attributes

    def open(self, address: str, userdn: str | None, password: str | None) -> ldap3.Connection:
        """Stand in for the authenticator's way to a server."""
        self.asked.append(address)
        self.threads.add(threading.current_thread().name)
        if address in self.down:
            raise LDAPSocketOpenError("connection refused")
        connection = ldap3.Connection(
            ldap3.Server("memory", get_info=ldap3.NONE),
            user=userdn,
            password=password,
            client_strategy=ldap3.MOCK_SYNC,
            check_names=False,
        )
        for dn, attributes in self.entries.items():
            connection.strategy.add_entry(dn, dict(attributes))
        connection.open()
        if address in self.hung:
            connection.search = raise_hung
        else:
            connection.search = partial(self.search, connection, connection.search)
        if address in self.bind_codes:
            connection.bind = lambda: setattr(connection, "result", answer(self.bind_codes[address]))
        return connection

    def search(self, connection, memory, base, search_filter, scope, attributes, **paging) -> None:
        """Answer a search: as the test says, else from memory, with as many entries as a page may have."""
        said = self.says(base, search_filter, attributes)
        if said is None:
            memory(base, search_filter, scope, attributes=attributes)
            if paging:
                self.turn_page(connection, paging["paged_size"], int(paging.get("paged_cookie", b"0")))
        else:
            connection.result, connection.response = answer(said[0]), said[1]

    def turn_page(self, connection, size: int, start: int) -> None:
        """Leave a page of the response, and say where the next one begins (RFC 2696)."""
        more = connection.response[start + size :]
        connection.response = connection.response[start : start + size]
        cookie = str(start + size).encode() if more else b""
        connection.result = connection.result | {"controls": {PAGED_RESULTS: {"value": {"cookie": cookie}}}}


def message(request: bytes, operation: bytes) -> bytes:
    """Return an answer: an operation with the number of its request, which comes first (RFC 4511, 4.1.1)."""
    _, start = compute_ber_size(request)
    content = request[start : start + 2 + request[start + 1]] + operation
    return b"\x30" + bytes([len(content)]) + content


@contextmanager
def silent_server(only_answer: bytes = b"") -> Iterator[str]:
    """Run a server that takes connections, answers one request at most, and says nothing more.

    In the end it hangs up, so that nobody waits for it longer than the test does.
    """
    over = threading.Event()

    class Silence(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            if only_answer:
                self.request.sendall(message(self.request.recv(4096), only_answer))
            over.wait(60)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Silence) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            over.set()
            server.shutdown()
            thread.join()


@contextmanager
def full_server() -> Iterator[str]:
    """Be a server that takes no connection any more, as one that is overrun or behind a firewall.

    Linux drops what does not fit into a listener's queue, here one connection, and answers nothing.
    """
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def no_server() -> Iterator[str]:
    """Yield an address at which connections are refused: nobody listens, and nobody else can take it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def found(dn: str, **attributes: list[bytes]) -> dict:
    """Return an entry as ldap3 has it."""
    return {"type": "searchResEntry", "dn": dn, "raw_attributes": attributes}


def raise_hung(*_args, **_more):
    """Stand in for the search of a server that does not answer."""
    raise LDAPSocketReceiveError("timed out")


def answer(code: int) -> dict:
    """Return the end of an operation as ldap3 has it."""
    return {"result": code, "description": results.RESULT_CODES[code], "message": "", "referrals": None}
