"""What an administrator does after a loss: change the inventory if need be, and run site.yml again."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from cluster import Cluster
from hub import HubUser

pytestmark = pytest.mark.disruptive


def test_a_node_that_was_reset_is_a_member_again(cluster: Cluster, user: Callable[[str], HubUser]) -> None:
    """The swarm forgets its former life, and it runs notebooks as before."""
    node = cluster.nodes[cluster.groups["workers"][0]]
    others = [other for other in cluster.nodes.values() if other is not node]
    host = cluster.hostname(node)
    alice = user("alice")
    alice.stop()
    node.run("docker", "swarm", "leave", "--force")
    cluster.playbook("site.yml")
    members = cluster.docker("node", "ls", "--filter", f"name={host}", "--format", "{{.Status}}").split()
    assert members == ["Ready"]
    labels = json.loads(cluster.docker("node", "inspect", "--format", "{{json .Spec.Labels}}", host))
    assert labels["campus.notebooks"] == "true"
    with cluster.closed(*others):
        alice.start()
    assert cluster.node_of(cluster.notebook("alice")).name == node.name
