"""Every way in which Docker can fail ends a start with one sentence, and leaves nothing behind."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cluster import Cluster, CommandError, Node, wait_for
from hub import HubUser, SpawnFailed
from stub import Student

pytestmark = pytest.mark.disruptive

# Eight addresses: the network itself, its gateway and a few tasks.
TINY_NETWORK = "campus-test-tiny"
TINY_SUBNET = "198.18.77.0/29"
# A digest that the cluster's registry does not hold.
MISSING = "sha256:" + "0" * 64
EAT_MEMORY = ["python3", "-c", "x = [bytearray(2**20) for _ in range(2**20)]"]
LAST_WORDS = ["sh", "-c", "echo 'these are the last words' >&2; exit 3"]

# What goes wrong: the start's traits, and what the sentence must say.
FAILURES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "image missing": ({"image": MISSING}, ["image of your server is missing"]),
    "export missing": ({"home_device": ":/no-such-export/{account}"}, ["does not exist on the storage"]),
    "protocol": ({"nfs_options": "nfsvers=4.0,hard"}, ["NFS version"]),
    "constraint": ({"placement_constraints": ["node.labels.none==true"]}, ["allowed to run your server"]),
    "memory guarantee": ({"mem_guarantee": "900G"}, ["enough free memory or CPU"]),
    "CPU guarantee": ({"cpu_guarantee": 900.0}, ["enough free memory or CPU"]),
    "generic resource": ({"generic_resources": {"gpu": 2}}, ["node of the cluster"]),
    "exits at once": ({"cmd": LAST_WORDS}, ["exit code 3", "these are the last words"]),
    "no such program": ({"cmd": ["/no/such/program"]}, ["program that starts it"]),
    "out of memory": ({"cmd": EAT_MEMORY, "mem_limit": "64M"}, ["more memory than it may"]),
    "no network": ({"network_name": "no-such-network"}, ["network"]),
    "address pool empty": ({"network_name": TINY_NETWORK}, ["no network address"]),
}


@pytest.fixture(scope="module")
def student(cluster: Cluster, user: Callable[[str], HubUser]) -> Iterator[Student]:
    """Alice; her server is stopped after each test."""
    student = Student(cluster, user("alice"))
    yield student
    student.hub.stop()


@pytest.fixture(scope="module")
def image(student: Student) -> str:
    """Reference of the students' image."""
    student.hub.stop()
    student.start()
    return student.image()


@pytest.fixture(scope="module")
def tiny_network(cluster: Cluster, image: str) -> Iterator[None]:
    """An overlay network whose addresses are all taken."""
    filler = "campus-test-filler"
    options = [
        "--network",
        TINY_NETWORK,
        "--replicas",
        "8",
        "--endpoint-mode",
        "dnsrr",
        "--entrypoint",
        "sleep",
    ]
    cluster.docker("network", "create", "--driver", "overlay", "--subnet", TINY_SUBNET, TINY_NETWORK)
    try:
        cluster.docker("service", "create", "--detach", "--name", filler, *options, image, "600")

        def full() -> bool:
            states = cluster.docker("service", "ps", filler, "--format", "{{.CurrentState}}").split("\n")
            return {"New", "Running"} <= {state.split(" ")[0] for state in states}

        wait_for("a full network", full, timeout=120)
        yield
    finally:
        cluster.docker("service", "rm", filler)
        wait_for("no network", lambda: cluster.docker("network", "rm", TINY_NETWORK), timeout=120)


@pytest.mark.usefixtures("tiny_network")
@pytest.mark.parametrize("failure", FAILURES)
def test_a_start_that_cannot_succeed_says_why(student: Student, image: str, failure: str) -> None:
    """One sentence on the spawn page; the service is gone, and the next start works."""
    traits, words = FAILURES[failure]
    if "image" in traits:
        traits = {"image": f"{image.partition('@')[0]}@{traits['image']}"}
    student.hub.stop()
    since = time.time()
    with pytest.raises(SpawnFailed) as refused:
        student.start(**traits)
    print(f"{failure}: {time.time() - since:.1f} s: {str(refused.value).splitlines()[-1]}")
    for word in words:
        assert word in str(refused.value)
    assert "Traceback" not in str(refused.value)
    log = student.cluster.log("hub", since)
    assert f"Start of {student.hub.name} failed: " in log
    wait_for("no service", lambda: student.services() == [], timeout=30)


def test_the_progress_page_tells_the_real_stages(student: Student) -> None:
    """Account, volume, node, image, container, server: as they come, each with the time since the click."""
    student.hub.stop()
    messages = student.start(delay=1)
    node = student.cluster.node_of(student.services()[0])
    host = student.cluster.hostname(node)
    _, account = student.cluster.accounts("GET", "/accounts/alice")
    # the first and the last are the hub's own
    told = [re.fullmatch(r"(.+) \((\d+\.\d) s\)", message) for message in messages[1:-1]]
    assert all(told), messages
    stages = [
        f"Your account is {account['account']}, user number {account['uid']}",
        "Your home's volume and your server are requested",
        f"Node {host} gets the image and makes the container",
        f"Node {host} mounts your home and starts the container",
        f"Container runs on node {host}, waiting for the server in it",
        "Your server answers",
    ]
    assert [one[1] for one in told if one[1] in stages] == stages, messages
    seconds = [float(one[2]) for one in told]
    assert seconds == sorted(seconds)
    assert seconds[-1] >= 1  # the server's own delay


def test_a_node_that_is_lost_during_a_start(student: Student) -> None:
    """The start ends with the node's name, and the next one goes elsewhere."""
    student.hub.stop()
    node = worker(student.cluster)
    with student.cluster.closed(*others(student.cluster, node)):
        student.request_start(uuid.uuid4().hex, delay=600)
        wait_for("the container", student.containers, timeout=120)
    with student.cluster.without_power(node):
        since = time.monotonic()
        with pytest.raises(SpawnFailed) as refused:
            student.hub.follow_progress()
        print(f"node lost: {time.monotonic() - since:.1f} s: {str(refused.value).splitlines()[-1]}")
        assert "was lost" in str(refused.value)
        student.start()
        student.assert_one_server()
    wait_for("one container", lambda: len(student.containers()) == 1, timeout=120)


def test_storage_that_goes_away_during_a_start(student: Student) -> None:
    """The container runs and its server reads from a dead mount: without asking, nobody would say why."""
    student.hub.stop()
    student.request_start(uuid.uuid4().hex, delay=600)
    wait_for("the container", student.containers, timeout=120)
    with student.cluster.without_storage():
        since = time.monotonic()
        with pytest.raises(SpawnFailed) as refused:
            student.hub.follow_progress()
        print(f"storage gone: {time.monotonic() - since:.1f} s: {str(refused.value).splitlines()[-1]}")
        assert "storage is not available" in str(refused.value)
    wait_for("the next start", lambda: started(student), timeout=240)
    student.assert_one_server()


def test_an_export_that_is_missing(student: Student) -> None:
    """The NFS server is there and does not serve the homes."""
    student.hub.stop()
    with student.cluster.without_export("homes"):
        since = time.monotonic()
        with pytest.raises(SpawnFailed) as refused:
            student.start()
        print(f"export gone: {time.monotonic() - since:.1f} s: {str(refused.value).splitlines()[-1]}")
        assert "does not exist on the storage" in str(refused.value)
    wait_for("the next start", lambda: started(student), timeout=240)
    student.assert_one_server()


def test_a_lost_manager_leaves_no_leader(student: Student) -> None:
    """Two managers survive the loss of neither; nothing is left behind when it is back, by a stop either."""
    student.hub.stop()
    cluster = student.cluster
    other = cluster.nodes[next(name for name in cluster.groups["managers"] if name != cluster.manager.name)]
    for role in ("hub", "proxy"):
        with cluster.closed(other):
            if cluster.node_of(cluster.service(role)).name == other.name:
                cluster.restart(role)
    wait_for("the hub's pages", student.hub.logged_in, timeout=180)
    with cluster.closed(other):
        student.start()
    left, begun = student.services(), time.time()
    with cluster.lost(other):
        wait_for("no leader", lambda: leaderless(cluster), timeout=120)
        # for JupyterHub this is a stop like any other
        student.hub.stop()
        since = time.monotonic()
        with pytest.raises(SpawnFailed) as refused:
            student.start()
        print(f"no leader: {time.monotonic() - since:.1f} s: {str(refused.value).splitlines()[-1]}")
        assert "no leader" in str(refused.value)
    wait_for("the end of what the stop left", lambda: not set(left) & set(student.services()), timeout=180)
    log = cluster.log("hub", begun)
    assert f"Stop of {student.hub.name} failed: The cluster has no leader" in log
    assert f"Removing service {left[0]}, of a server that is no more" in log
    student.start()
    student.assert_one_server()


def test_a_server_whose_node_is_lost_starts_elsewhere(student: Student) -> None:
    """The hub notices, the user starts again, and the old server ends when its node is back."""
    student.hub.stop()
    node = worker(student.cluster)
    with student.cluster.closed(*others(student.cluster, node)):
        student.start()
    assert student.cluster.node_of(student.services()[0]).name == node.name
    with student.cluster.lost(node):
        since = time.monotonic()
        wait_for("the hub notices", lambda: student.hub.server is None, timeout=180)
        print(f"noticed after {time.monotonic() - since:.1f} s")
        student.start()
        student.assert_one_server()
    wait_for("the old container's end", lambda: len(student.containers()) == 1, timeout=120)
    student.assert_one_server()


def started(student: Student) -> bool:
    """Whether a start succeeds; as long as the storage comes back, students try again."""
    try:
        student.start()
    except SpawnFailed as failure:
        raise AssertionError(str(failure)) from failure
    return True


def leaderless(cluster: Cluster) -> bool:
    """Whether a manager says that the swarm has no leader."""
    try:
        cluster.docker("node", "ls")
    except CommandError as error:
        return "leader" in str(error)
    return False


def worker(cluster: Cluster) -> Node:
    """A node that runs notebooks only."""
    return cluster.nodes[cluster.groups["workers"][0]]


def others(cluster: Cluster, node: Node) -> list[Node]:
    """All nodes but one."""
    return [other for other in cluster.nodes.values() if other is not node]
