"""The inventory is what the scenario wants, and the cluster is what the inventory says."""

from __future__ import annotations

import json
import os

from cluster import Cluster, wait_for


def test_the_groups_have_the_expected_sizes(cluster: Cluster) -> None:
    """A play that matches no host succeeds; this test does not."""
    expected = dict(part.split("=") for part in os.environ.get("CAMPUS_GROUPS", "storage=1").split())
    assert {name: str(len(cluster.groups[name])) for name in expected} == expected


def test_check_mode_finds_nothing_to_change(cluster: Cluster) -> None:
    """A deployed cluster is what check mode would make of it, on every host."""
    recap = cluster.playbook("site.yml", "--check")
    assert set(cluster.nodes) <= set(recap)
    wrong = {
        host: counters
        for host, counters in recap.items()
        if counters["changed"] or counters["failed"] or counters["unreachable"]
    }
    assert wrong == {}


def test_the_swarm_has_the_inventorys_nodes(cluster: Cluster) -> None:
    """Every node is a ready member, with its role."""
    ids = cluster.docker("node", "ls", "--quiet").split()
    members = json.loads(cluster.docker("node", "inspect", *ids))
    names = cluster.node_names()
    found = {names[member["Description"]["Hostname"]]: member for member in members}
    assert set(found) == set(cluster.nodes)
    assert {member["Status"]["State"] for member in members} == {"ready"}
    managers = {name for name, member in found.items() if member["Spec"]["Role"] == "manager"}
    assert managers == set(cluster.groups["managers"])


def test_every_service_runs(cluster: Cluster) -> None:
    """No service waits or restarts."""
    names = [service["Spec"]["Name"] for service in cluster.services()]
    assert names
    for name in names:
        wait_for(f"{name} runs", lambda name=name: cluster.running(name), timeout=120)


def test_services_run_the_registrys_images_by_digest(cluster: Cluster) -> None:
    """What was tested is what runs, on every node."""
    images = {
        service["Spec"]["Name"]: service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]
        for service in cluster.services()
    }
    assert {name: image for name, image in images.items() if "@sha256:" not in image} == {}


def test_no_secret_is_in_a_services_definition(cluster: Cluster) -> None:
    """Generated secrets reach containers as Docker secrets only."""
    definitions = json.dumps(cluster.services())
    secrets = cluster.inventory.path / "secrets"
    values = [path.read_text().strip() for path in secrets.iterdir() if path.suffix == ""]
    assert values
    assert all(value not in definitions for value in values)
