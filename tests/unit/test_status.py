"""The page of playbooks/status.yml: from what Docker says, and when somebody does not answer."""

from __future__ import annotations

import base64
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOW = 1_800_000_000
DIGEST = "sha256:" + "ab" * 32
HUB, NOTEBOOK = f"reg:5000/campus/hub@{DIGEST}", f"reg:5000/campus/notebook@sha256:{'cd' * 32}"


def load(path: str) -> ModuleType:
    """Import a plugin by its file."""
    spec = importlib.util.spec_from_file_location(f"{Path(path).stem}_{Path(path).parent.name}", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


status = load("plugins/filter/status.py")
status_info = load("plugins/modules/status_info.py")


def node(name: str, number: int, **more: Any) -> dict[str, Any]:
    """A node as the Docker API has it."""
    return {
        "ID": f"id-{name}",
        "Description": {"Hostname": name, "Engine": {"EngineVersion": "26.1.5"}},
        "Status": {"State": "ready", "Addr": f"192.0.2.{number}"},
        "Spec": {"Role": "worker", "Availability": "active"},
        **more,
    }


def service(
    name: str, image: str, labels: dict[str, str] | None = None, mode: Any = None, configs: Any = None
):
    """A service as the Docker API has it."""
    return {
        "ID": f"id-{name}",
        "Spec": {
            "Name": name,
            "Labels": labels,
            "Mode": mode or {"Replicated": {"Replicas": 1}},
            "TaskTemplate": {"ContainerSpec": {"Image": image, "Configs": configs}},
        },
    }


def task(name: str, where: str, state: str = "running", desired: str = "running", error: str = "") -> dict:
    """A task as the Docker API has it."""
    return {
        "ServiceID": f"id-{name}",
        "NodeID": f"id-{where}",
        "DesiredState": desired,
        "Status": {"State": state, "Err": error},
        "UpdatedAt": "2026-01-01",
    }


class Docker:
    """A manager's Docker."""

    def __init__(self, manager: bool = True) -> None:
        """Be a manager, or none."""
        self.manager = manager

    def info(self) -> dict:
        """Say which node it is."""
        return {
            "Swarm": {"NodeID": "id-node1" if self.manager else "id-node3", "ControlAvailable": self.manager}
        }

    def images(self) -> list[dict]:
        """The hub's image, that of notebooks, and one of yesteryear."""
        old = {"Id": "sha256:old", "RepoTags": None, "RepoDigests": None, "Created": 0, "Size": 1}
        hub = {"Id": "sha256:hub", "RepoTags": ["reg:5000/campus/hub:1"], "RepoDigests": [HUB]}
        notebook = {"Id": "sha256:nb", "RepoTags": [], "RepoDigests": [NOTEBOOK]}
        return [old, *({**one, "Created": NOW - 86400 * 3, "Size": 600 << 20} for one in (hub, notebook))]

    def containers(self) -> list[dict]:
        """The hub."""
        return [{"ImageID": "sha256:hub"}]

    def nodes(self) -> list[dict]:
        """A leader, and a worker that is down."""
        leader = {"Spec": {"Role": "manager", "Availability": "active"}, "ManagerStatus": {"Leader": True}}
        down = {"Status": {"State": "down", "Addr": "192.0.2.13"}}
        return [node("node1", 11, **leader), node("node3", 13, **down)]

    def services(self) -> list[dict]:
        """Hub, a service on all managers, one that does not start, and two notebooks."""
        config = [{"ConfigName": "jupyterhub_jupyterhub_config_1", "ConfigID": "c"}, {"ConfigName": "other"}]
        user = {"org.jupyterhub.user": "alice"}
        return [
            service("jupyterhub_hub", HUB, configs=config),
            service("jupyterhub_docker-api", HUB, mode={"Global": {}}),
            service("edge_edge", f"reg:5000/campus/edge@{DIGEST}"),
            service("jupyter-alice", NOTEBOOK, user),
            service("jupyter-bob", NOTEBOOK, user),
        ]

    def tasks(self) -> list[dict]:
        """One of each, and some of the past."""
        return [
            task("jupyterhub_hub", "node1"),
            task("jupyterhub_hub", "node1", "failed", "shutdown", "exit 1"),
            task("jupyterhub_docker-api", "node1"),
            task("edge_edge", "node1", "rejected", "shutdown", "no such image"),
            task("edge_edge", "", "pending"),
            task("jupyter-alice", "node1"),
            task("jupyter-bob", "node1", "running", "shutdown"),
        ]

    def inspect_config(self, _id: str) -> dict:
        """The hub's file."""
        text = f"c.NfsSwarmSpawner.image = '{NOTEBOOK}'\n"
        return {"Spec": {"Data": base64.b64encode(text.encode()).decode()}}


def answers() -> dict[str, Any]:
    """What the servers told; the last is down."""
    manager = {
        "engine": status_info.engine_state(Docker()),
        "swarm": status_info.swarm_state(Docker()),
        "storage": {
            **{"path": "/srv/nfs", "size": 100 << 30, "used": 30 << 30, "free": 60 << 30},
            **{"accounts": 5, "locked": 1, "homes": 4, "archives": 2},
        },
        "hub": {"status": 200, "seconds": 0.04, "certificate": "PEM"},
    }
    return {
        "node1": manager,
        "three": {"unreachable": True, "msg": "Task failed: ssh: connect to host 192.0.2.13: timed out"},
    }


ADDRESSES = {"node1": "192.0.2.11", "three": "192.0.2.13"}
URL = "https://hub.test/"
CERTIFICATES = {
    URL: "20270121000000Z",
    "ca": "20400101000000Z",
    "edge": "20270120000000Z",
    "old": "20260101000000Z",
    "registry": "",
}


def page(servers: dict[str, Any]) -> list[str]:
    """The lines of the page, with single spaces."""
    text = status.status_report(servers, ADDRESSES, CERTIFICATES, URL, "ask your CA", NOW)
    assert text.endswith("\n")
    assert max(map(len, text.splitlines())) < 160
    return [" ".join(line.split()) for line in text.splitlines()]


def test_the_page():
    lines = page(answers())
    assert "node1 manager active ready leader 26.1.5 1 yes" in lines
    assert "node3 (three) worker active down 26.1.5 0 no" in lines
    assert "jupyterhub_hub 1/1" in lines
    assert "jupyterhub_docker-api 1/1" in lines
    assert "edge_edge 0/1 no such image" in lines
    assert not [line for line in lines if "jupyter-alice" in line]
    assert "hub:1 3 days 600 MiB node1" in lines
    assert "notebook@sha256:cdcdcdcdcdcd 3 days 600 MiB node1" in lines
    assert "edge@sha256:abababababab no server that answers" in lines
    assert not [line for line in lines if "old" in line and "MiB" in line]
    assert "/srv/nfs: 100 GiB, 33 % used, 60 GiB free" in lines
    assert "5 accounts, 1 of them locked; 4 homes; 2 archives" in lines
    assert "ca 2040-01-01 4733 days" in lines
    assert "edge 2027-01-20 4 days (make run)" in lines
    assert "https://hub.test/ 2027-01-21 5 days (ask your CA)" in lines
    assert "old 2026-01-01 EXPIRED" in lines
    assert "registry missing" in lines
    assert "Hub: https://hub.test/ answers in 0.04 s" in lines
    assert lines[-1].startswith("three does not answer, so nothing is known of its images (connect to host")


def test_nobody_answers():
    lines = page({"node1": {"unreachable": True, "msg": "timed out"}, "three": {"msg": "docker is missing"}})
    assert "Swarm: no manager answers" in lines
    assert "the storage node does not answer" in lines
    assert "Hub: https://hub.test/ does not answer (no manager could be asked)" in lines
    assert lines[-1] == "three does not answer, so nothing is known of its images (docker is missing)."


def test_troubles_are_told():
    """A swarm without a leader, a Docker that hangs, a storage that cannot be read, a hub that is ill."""
    servers = answers()
    servers["node1"] |= {
        "swarm": {"error": "The swarm does not have a leader."},
        "engine": {"error": "timed out"},
        "storage": {"error": "No such file or directory"},
        "hub": {"status": 503, "seconds": 1, "certificate": "PEM"},
    }
    lines = page(servers)
    assert "Swarm: The swarm does not have a leader." in lines
    assert "No such file or directory" in lines
    assert "Hub: https://hub.test/ does not answer (status 503)" in lines
    assert "node1: Docker does not answer: timed out" in lines


def test_another_managers_answer_is_taken():
    servers = {
        "first": {"engine": {}, "swarm": {"error": "no leader"}, "hub": {"error": "refused"}},
        **answers(),
    }
    assert "jupyterhub_hub 1/1" in page(servers)


def test_a_worker_knows_no_swarm():
    assert status_info.swarm_state(Docker(manager=False)) == {}


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 40, "3.0 TiB"), (9 << 50, "9216 TiB")],
)
def test_sizes(number, text):
    assert status.size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "0 seconds"), (119, "119 seconds"), (7200, "2 hours"), (10**7, "115 days")]
)
def test_ages(seconds, text):
    assert status.ago(seconds) == text


def test_the_storage(tmp_path: Path):
    for directory in ("accounts/locked", "homes/alice", "homes/.alice.new", "archive"):
        (tmp_path / "nfs" / directory).mkdir(parents=True)
    (tmp_path / "nfs/homes/link").symlink_to(tmp_path)
    (tmp_path / "nfs/accounts/passwd").write_text("alice:x\nbob:x\n")
    (tmp_path / "nfs/accounts/locked/bob").touch()
    (tmp_path / "nfs/archive/bob-20261124T204811Z.tar.gz").touch()
    found = status_info.storage_state(str(tmp_path / "nfs"), str(tmp_path / "nfs/archive"))
    assert {key: found[key] for key in ("accounts", "locked", "homes", "archives")} == {
        "accounts": 2,
        "locked": 1,
        "homes": 1,
        "archives": 1,
    }
    assert found["size"] > found["free"] > 0
    missing = status_info.told(status_info.storage_state, str(tmp_path / "none"), str(tmp_path))
    assert missing == {"error": "No such file or directory"}


def test_a_hub_that_is_not_there(monkeypatch):
    def refuse(address, timeout):
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(status_info.socket, "create_connection", refuse)
    assert status_info.told(status_info.hub_state, "192.0.2.1", "hub.test", 1) == {
        "error": "Connection refused"
    }
