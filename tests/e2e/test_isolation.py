"""What a notebook must not reach: other homes, the storage's port, the nodes, the cluster's own services."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
from cluster import Cluster, Node
from hub import HubUser

# Dial every (host, port), all at once, and each from a privileged port as well: with AUTH_SYS an NFS server
# believes whoever comes from there, and a container may bind one.
DIAL = """
import concurrent.futures, json, socket, struct

def answers(target, source):
    with socket.socket() as dialled:
        dialled.settimeout(3)
        # Ends without a wait, in which nobody could bind the port again.
        dialled.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        try:
            dialled.bind(("", source))
            dialled.connect(tuple(target))
        except OSError:
            return False
        return True

targets = json.loads({targets!r})
calls = [(target, source) for number, target in enumerate(targets) for source in (0, 600 + number)]
with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
    found = [call for call, answer in zip(calls, pool.map(lambda call: answers(*call), calls)) if answer]
print(json.dumps([[*target, "privileged" if source else "any"] for target, source in found]))
"""

# What a notebook needs; that it is found shows that dialling works.
HUB = ("hub", 8081)
HUB_FOUND = [[*HUB, "any"], [*HUB, "privileged"]]

STORAGE_NODE = "on the storage node"
OTHER_NODE = "on another node"


@pytest.fixture(scope="module")
def places(cluster: Cluster, user: Callable[[str], HubUser]) -> dict[str, HubUser]:
    """Alice and bob with running servers, one of them on the storage node, the other on another.

    From there packets to the storage go through INPUT, from elsewhere through FORWARD.
    """
    alice, bob = user("alice").start(), user("bob")
    others = [node for node in cluster.nodes.values() if node is not cluster.storage]
    first = place(cluster, alice)
    taken = [cluster.storage] if first == STORAGE_NODE else others
    if bob.server and place(cluster, bob) == first:
        bob.stop()
    with cluster.closed(*taken):
        bob.start()
    found = {first: alice, place(cluster, bob): bob}
    assert set(found) == {STORAGE_NODE, OTHER_NODE}
    return found


@pytest.fixture(scope="module")
def alice(places: dict[str, HubUser], user: Callable[[str], HubUser]) -> HubUser:
    """A student with a running server."""
    return user("alice")


@pytest.fixture(scope="module")
def bob(places: dict[str, HubUser], user: Callable[[str], HubUser]) -> HubUser:
    """Another student with a running server."""
    return user("bob")


@pytest.fixture(scope="module", params=[STORAGE_NODE, OTHER_NODE])
def someone(request: pytest.FixtureRequest, places: dict[str, HubUser]) -> HubUser:
    """The student whose server is there."""
    return places[request.param]


def test_another_students_home_is_not_there(cluster: Cluster, alice: HubUser, bob: HubUser) -> None:
    """Bob's kernel has no path to alice's files, and may not mount one."""
    alice.run("import pathlib; pathlib.Path.home().joinpath('secret.txt').write_text('mine')")
    found = bob.json(
        "import json, pathlib, subprocess\n"
        "homes = [entry.name for entry in pathlib.Path('/home').iterdir()]\n"
        "paths = subprocess.run(['find', '/home', '/mnt', '/srv', '-name', 'secret.txt'],\n"
        "                       capture_output=True, text=True).stdout.split()\n"
        "print(json.dumps([homes, paths]))"
    )
    homes, paths = found
    assert "alice" not in homes
    assert paths == []
    with pytest.raises(AssertionError, match=r"PermissionError|Errno 1\b"):
        bob.run(
            "import ctypes, os\n"
            "libc = ctypes.CDLL(None, use_errno=True)\n"
            "os.makedirs('/tmp/m', exist_ok=True)\n"
            "if libc.mount(b'none', b'/tmp/m', b'tmpfs', 0, None): raise OSError(ctypes.get_errno(), 'mount')"
        )


def test_the_storage_itself_keeps_others_out(cluster: Cluster, alice: HubUser, bob: HubUser) -> None:
    """Bob's UID on the storage node cannot enter alice's home, whatever is mounted where."""
    accounts = {name: cluster.accounts("GET", f"/accounts/{name}")[1] for name in ("alice", "bob")}
    home = f"{cluster.storage_dir}{accounts['alice']['home']}"
    uid, gid = accounts["bob"]["uid"], accounts["bob"]["gid"]
    groups = ",".join(str(number) for number in accounts["bob"]["groups"].values())
    with pytest.raises(AssertionError, match="Permission denied"):
        cluster.storage.run("setpriv", f"--reuid={uid}", f"--regid={gid}", f"--groups={groups}", "ls", home)


def test_bob_cannot_open_alices_server(alice: HubUser, bob: HubUser) -> None:
    """Neither with his token nor with his session."""
    assert bob.api("GET", "/user/alice/api/contents").status_code in (401, 403, 404)
    page = bob.get("/user/alice/lab", allow_redirects=True)
    assert page.status_code in (401, 403, 404) or "/hub/" in page.url


def test_the_nodes_are_closed_to_notebooks(cluster: Cluster, someone: HubUser) -> None:
    """SSH, NFS, swarm, registry and Docker ports of every node, its own included; the hub's API is open."""
    ports = (22, 111, 2375, 2376, 2377, 5000, 7946, nfs_port(cluster))
    closed = [(node.address, port) for node in cluster.nodes.values() for port in ports]
    assert dial(someone, [HUB, *closed]) == HUB_FOUND


def test_the_gateways_are_closed_too(cluster: Cluster, someone: HubUser) -> None:
    """A node also answers on its bridges' addresses, which a container sees as its gateways."""
    gateways = someone.json(
        "import json, pathlib, socket, struct\n"
        "rows = [line.split() for line in pathlib.Path('/proc/net/route').read_text().splitlines()[1:]]\n"
        "ways = {socket.inet_ntoa(struct.pack('<L', int(row[2], 16))) for row in rows}\n"
        "print(json.dumps(sorted(ways - {'0.0.0.0'})))"
    )
    assert gateways
    closed = [(way, port) for way in gateways for port in (22, 2377, 5000, 7946, nfs_port(cluster))]
    assert dial(someone, [HUB, *closed]) == HUB_FOUND


@pytest.mark.smoke
def test_the_nodes_are_closed_to_the_outside(cluster: Cluster) -> None:
    """NFS and the swarm's ports do not answer to this machine, which is no node; the hub's page does."""
    page = (urlsplit(cluster.url).hostname, 443)
    ports = (111, 2377, 7946, nfs_port(cluster))
    targets = [page, *((node.address, port) for node in cluster.nodes.values() for port in ports)]
    with ThreadPoolExecutor(len(targets)) as pool:
        found = [target for target, answer in zip(targets, pool.map(answers, targets), strict=True) if answer]
    assert found == [page]


@pytest.fixture
def mounted(cluster: Cluster) -> Iterator[tuple[Node, str]]:
    """A node that is not the storage, and where its root has mounted the homes."""
    node = next(node for node in cluster.nodes.values() if node is not cluster.storage)
    directory = node.run("mktemp", "--directory").strip()
    options = f"nfsvers=4.2,port={nfs_port(cluster)}"
    node.run("mount", "-t", "nfs4", "-o", options, f"{cluster.storage.address}:/homes", directory)
    yield node, directory
    node.run("umount", directory)
    node.run("rmdir", directory)


def test_root_of_a_node_is_nobody_on_the_storage(
    cluster: Cluster, alice: HubUser, mounted: tuple[Node, str]
) -> None:
    """It may neither write into a home nor make one; the owner of a home may enter it."""
    node, homes = mounted
    _, account = cluster.accounts("GET", f"/accounts/{alice.name}")
    home = f"{homes}/{account['account']}"
    for path in (f"{home}/by-root", f"{homes}/by-root"):
        with pytest.raises(AssertionError, match="Permission denied"):
            node.run("touch", path)
    with pytest.raises(AssertionError, match="Permission denied"):
        node.run("ls", home)
    owner = (f"--reuid={account['uid']}", f"--regid={account['gid']}", "--clear-groups")
    node.run("setpriv", *owner, "touch", f"{home}/by-alice")
    file = cluster.storage.stat(f"{cluster.storage_dir}{account['home']}/by-alice")
    assert (file["uid"], file["gid"]) == (account["uid"], account["gid"])


def test_the_clusters_own_services_are_not_seen(alice: HubUser) -> None:
    """Notebooks are on no network with the database, the accounts, the directory or Docker."""
    services = [
        ("database", 5432),
        ("accounts", 8080),
        ("directory", 389),
        ("directory", 636),
        ("docker-api", 2375),
        ("proxy", 8001),
    ]
    assert dial(alice, [HUB, *services]) == HUB_FOUND


def test_notebooks_do_not_reach_each_other(cluster: Cluster, alice: HubUser, bob: HubUser) -> None:
    """What bob can reach of alice's server asks him for a password."""
    answer = bob.run(
        "import urllib.request, urllib.error\n"
        f"address = 'http://' + {cluster.notebook('alice')!r} + ':8888/user/alice/api/contents'\n"
        "try:\n"
        "    print(urllib.request.urlopen(address, timeout=5).status)\n"
        "except urllib.error.HTTPError as error:\n"
        "    print(error.code)\n"
        "except OSError as error:\n"
        "    print('unreachable')"
    )
    assert answer.strip() in ("401", "403", "404", "unreachable")


def place(cluster: Cluster, user: HubUser) -> str:
    """Where a user's server runs."""
    return STORAGE_NODE if cluster.node_of(cluster.notebook(user.name)) is cluster.storage else OTHER_NODE


def nfs_port(cluster: Cluster) -> int:
    """The port of the NFS server."""
    return int(cluster.value("nfs_port", 2049))


def answers(target: tuple[str, int]) -> bool:
    """Whether this machine can open a connection."""
    try:
        socket.create_connection(target, timeout=3).close()
    except OSError:
        return False
    return True


def dial(user: HubUser, targets: list[tuple[str, int]]) -> list[list[object]]:
    """The targets that answer to the user's kernel, and whether from any or from a privileged port."""
    return user.json(DIAL.format(targets=json.dumps(targets)), timeout=120)
