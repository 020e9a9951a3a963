"""What a notebook must not reach: other homes, the storage's port, the nodes, the cluster's own services."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from cluster import Cluster
from hub import HubUser

# Dial every (host, port), all at once; and NFS ports from a privileged port as well: with AUTH_SYS an NFS
# server believes whoever comes from there, and a container may bind one.
DIAL = """
import concurrent.futures, json, socket

def answers(target, source=None):
    try:
        socket.create_connection(target, timeout=3, source_address=source).close()
        return True
    except OSError:
        return False

targets = [tuple(target) for target in json.loads({targets!r})]
with concurrent.futures.ThreadPoolExecutor(len(targets)) as pool:
    found = [target for target, answer in zip(targets, pool.map(answers, targets)) if answer]
nfs = [target for target in targets if target[1] == 2049]
found += [(*target, "from port 900") for target in nfs if answers(target, ("", 900))]
print(json.dumps(found))
"""


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


def test_the_nodes_are_closed_to_notebooks(cluster: Cluster, alice: HubUser) -> None:
    """SSH, NFS, swarm, registry and Docker ports of every node, its own included."""
    ports = (22, 111, 2049, 2375, 2376, 2377, 5000, 7946)
    open_ports = dial(alice, [(node.address, port) for node in cluster.nodes.values() for port in ports])
    assert open_ports == []


def test_the_gateways_are_closed_too(alice: HubUser) -> None:
    """A node also answers on its bridges' addresses, which a container sees as its gateways."""
    gateways = alice.json(
        "import json, pathlib, socket, struct\n"
        "rows = [line.split() for line in pathlib.Path('/proc/net/route').read_text().splitlines()[1:]]\n"
        "ways = {socket.inet_ntoa(struct.pack('<L', int(row[2], 16))) for row in rows}\n"
        "print(json.dumps(sorted(ways - {'0.0.0.0'})))"
    )
    assert dial(alice, [(way, port) for way in gateways for port in (22, 2049, 2377, 5000)]) == []


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
    assert dial(alice, services) == []


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


@pytest.fixture
def outside(alice: HubUser) -> Callable[[str, int], bool]:
    """Whether alice's kernel can open a connection."""
    return lambda host, port: bool(dial(alice, [(host, port)]))


def test_the_hubs_api_is_seen(outside: Callable[[str, int], bool]) -> None:
    """The counter-check: dialling works, and what a notebook needs is there."""
    assert outside("hub", 8081)


def dial(user: HubUser, targets: list[tuple[str, int]]) -> list[list[object]]:
    """The targets that answer to the user's kernel."""
    return user.json(DIAL.format(targets=json.dumps(targets)), timeout=120)
