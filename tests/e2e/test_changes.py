"""What an administrator changes, in the inventory or after a loss, and runs site.yml again."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from cluster import Cluster, wait_for
from hub import HubUser

pytestmark = pytest.mark.disruptive

# Minutes; set by the first run, waited for at the end.
IDLE = {"hub_notebook_idle_minutes": 1}


def test_a_node_that_was_reset_is_a_member_again(cluster: Cluster, user: Callable[[str], HubUser]) -> None:
    """The swarm forgets its former life, and it runs notebooks as before; though a run is cut off."""
    node = cluster.nodes[cluster.groups["workers"][0]]
    others = [other for other in cluster.nodes.values() if other is not node]
    host = cluster.hostname(node)
    alice = user("alice")
    alice.stop()
    node.run("docker", "swarm", "leave", "--force")
    cluster.interrupted_playbook("site.yml", "swarm : Join the swarm]", "--extra-vars", json.dumps(IDLE))
    cluster.playbook("site.yml", "--extra-vars", json.dumps(IDLE))
    members = cluster.docker("node", "ls", "--filter", f"name={host}", "--format", "{{.Status}}").split()
    assert members == ["Ready"]
    labels = json.loads(cluster.docker("node", "inspect", "--format", "{{json .Spec.Labels}}", host))
    assert labels["campus.notebooks"] == "true"
    with cluster.closed(*others):
        alice.start()
    assert cluster.node_of(cluster.notebook("alice")).name == node.name


def test_an_idle_server_is_stopped(cluster: Cluster, user: Callable[[str], HubUser]) -> None:
    """Nobody looks at it for a minute; what was saved stays."""
    alice = user("alice").start()
    word = alice.run("import pathlib; pathlib.Path('kept.txt').write_text('kept'); print('saved')")
    assert word.strip() == "saved"
    wait_for("the end of the idle server", lambda: alice.server is None, timeout=300, pause=5)
    assert cluster.notebook("alice") is None
    _, account = cluster.accounts("GET", "/accounts/alice")
    assert cluster.storage.run("cat", f"{cluster.storage_dir}{account['home']}/kept.txt") == "kept"


def test_images_of_earlier_runs_are_removed(cluster: Cluster) -> None:
    """From a node and from the registry; what servers need stays, and so does what is not the cluster's."""
    node = cluster.storage
    notebook = next(
        name
        for name in cluster.docker("image", "ls", "--format", "{{.Repository}}").split()
        if name.endswith("/campus/notebook")
    )
    for name in (f"{notebook}:earlier", "somebody/notebook:earlier"):
        node.run("sh", "-c", f"echo {name} > /tmp/earlier; tar -C /tmp -c earlier | docker import - {name}")
    node.run("docker", "push", f"{notebook}:earlier", timeout=120)

    def images() -> set[str]:
        return set(node.run("docker", "image", "ls", "--no-trunc", "--quiet").split())

    def named(name: str) -> str:
        return node.run("docker", "image", "ls", "--quiet", name).strip()

    before = images()
    check = cluster.playbook("clean_images.yml", "--check")
    assert images() == before
    recap = cluster.playbook("clean_images.yml")
    assert all(sum(host["changed"] for host in done.values()) > 0 for done in (check, recap))
    assert images() < before
    assert not named(f"{notebook}:earlier")
    assert named(notebook)
    assert named("somebody/notebook:earlier")
    tags = f"{cluster.value('registry_data_dir', '/srv/campus-jupyterhub/registry')}/docker/registry/v2"
    assert "earlier" not in node.run("ls", f"{tags}/repositories/campus/notebook/_manifests/tags").split()
    # which asks the registry for all that the inventory wants, and stops without it
    again = cluster.playbook("clean_images.yml")
    assert sum(host["changed"] for host in again.values()) == 0
    node.run("docker", "image", "rm", "somebody/notebook:earlier")
