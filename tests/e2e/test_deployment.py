"""The inventory is what the scenario wants, and the cluster is what the inventory says."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass

import pytest
from cluster import Cluster, wait_for


@dataclass
class Run:
    """What a run of a playbook gave.

    Attributes:
        recap: Counters by host.
        log: All that Ansible has said, its warnings included.
    """

    recap: dict[str, dict[str, int]]
    log: str


@pytest.fixture(scope="module")
def check_run(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run in check mode."""
    log = tmp_path_factory.mktemp("check") / "ansible.log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANSIBLE_LOG_PATH", str(log))
        patch.setenv("ANSIBLE_DEPRECATION_WARNINGS", "true")
        recap = cluster.playbook("site.yml", "--check")
    return Run(recap, log.read_text())


@pytest.mark.smoke
def test_the_groups_have_the_expected_sizes(cluster: Cluster) -> None:
    """A play that matches no host succeeds; this test does not."""
    expected = dict(part.split("=") for part in os.environ.get("CAMPUS_GROUPS", "storage=1").split())
    assert {name: str(len(cluster.groups[name])) for name in expected} == expected


def test_check_mode_finds_nothing_to_change(cluster: Cluster, check_run: Run) -> None:
    """A deployed cluster is what check mode would make of it, on every host."""
    assert set(cluster.nodes) <= set(check_run.recap)
    wrong = {
        host: counters
        for host, counters in check_run.recap.items()
        if counters["changed"] or counters["failed"] or counters["unreachable"]
    }
    assert wrong == {}


def test_nothing_is_deprecated(check_run: Run) -> None:
    """The next release of Ansible or of a collection takes the playbooks as they are."""
    assert "PLAY RECAP" in check_run.log
    assert [line for line in check_run.log.splitlines() if "[DEPRECATION WARNING]" in line] == []


@pytest.mark.smoke
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


@pytest.mark.smoke
def test_every_service_runs(cluster: Cluster) -> None:
    """No service waits or restarts."""
    names = [service["Spec"]["Name"] for service in cluster.services()]
    assert names
    for name in names:
        wait_for(f"{name} runs", lambda name=name: cluster.running(name), timeout=120)


@pytest.mark.smoke
def test_services_run_the_registrys_images_by_digest(cluster: Cluster) -> None:
    """What was tested is what runs, on every node."""
    images = {
        service["Spec"]["Name"]: service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]
        for service in cluster.services()
    }
    assert {name: image for name, image in images.items() if "@sha256:" not in image} == {}


@pytest.mark.smoke
def test_no_secret_is_in_a_definition(cluster: Cluster) -> None:
    """Passwords and generated secrets reach containers as Docker secrets: no service or config has one."""
    ids = cluster.docker("config", "ls", "--quiet").split()
    configs = json.loads(cluster.docker("config", "inspect", *ids))
    definitions = [base64.b64decode(config["Spec"]["Data"]).decode() for config in configs]
    definitions.append(json.dumps(cluster.services(), ensure_ascii=False))
    files = [path for path in (cluster.inventory.path / "secrets").rglob("*") if path.is_file()]
    values = [path.read_text().strip() for path in files if path.suffix == ""]
    # Of a private key one line is enough.
    keys = [path.read_text().splitlines()[1] for path in files if path.suffix == ".key"]
    assert values
    assert keys
    values += keys
    values += [user["password"] for user in cluster.value("directory_users", [])]
    values += filter(None, [cluster.value("hub_ldap_search_password")])
    assert [value for value in values if any(value in text for text in definitions)] == []
