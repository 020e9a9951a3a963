"""Hubs of a benchmark's own in a deployed lab, beside the inventory's hub and on the same networks."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster import Cluster, Node, wait_for

from benchmarks import ROOT
from benchmarks.drive import Driver

CONFIG = Path(__file__).with_name("jupyterhub_config.py")
CONFIG_TARGET = "/etc/jupyterhub/bench_config.py"
# Docker's own command line makes no service from a specification.
CREATE = """
import docker, json, sys
client = docker.APIClient()
client._result(client._post_json(client._url("/services/create"), data=json.load(sys.stdin)))
"""
# The hub is a child of the init in its container, and what `docker exec` runs there has no parent
# (proc_pid_stat(5): the second field after the name).
HUB_PID = """
import pathlib
stats = {path.parent.name: path.read_text() for path in pathlib.Path("/proc").glob("[0-9]*/stat")}
print(min(int(pid) for pid, stat in stats.items() if stat.rpartition(")")[2].split()[1] == "1"))
"""


class Lab:
    """A deployed cluster that is measured.

    Attributes:
        cluster: Its nodes and Docker.
        node: Name in the swarm of the node on which single servers start: the last, a worker if there is one.
    """

    def __init__(self, inventory: Path) -> None:
        """Read the inventory."""
        self.cluster = Cluster(inventory.resolve())
        self.node = self.cluster.hostname(self.cluster.nodes[self.cluster.groups["swarm"][-1]])

    @contextlib.contextmanager
    def hub(self, side: str, constraints: list[str]) -> Iterator[Driver]:
        """Run a hub of one side for the length of a block.

        Args:
            side: `ours` or `upstream`.
            constraints: Where its servers start.

        Yields:
            Who presses its buttons, in its container.
        """
        name, token = f"bench-{side}", secrets.token_hex(16)
        settings = {
            "side": side,
            "deployed": True,
            "token": token,
            "directory": "/tmp",  # noqa: S108 - of its own container
            "bind_url": "http://0.0.0.0:8081",
            "connect_url": f"http://{name}:8081",
            "constraints": constraints,
        }
        cluster = self.cluster
        cluster.manager.run("docker", "config", "create", name, "-", stdin=CONFIG.read_text(encoding="utf-8"))
        try:
            config = cluster.docker("config", "inspect", "--format", "{{.ID}}", name).strip()
            spec = hub_spec(self._deployed_hub(), name, config, settings)
            cluster.manager.run("python3", "-c", CREATE, stdin=json.dumps(spec))
            try:
                with self._driver(name, token) as driver:
                    yield driver
            finally:
                cluster.docker("service", "rm", name)
        finally:
            wait_for("its config is free", lambda: cluster.docker("config", "rm", name), timeout=60)

    def _deployed_hub(self) -> dict[str, Any]:
        """Specification of the inventory's hub."""
        return json.loads(self.cluster.docker("service", "inspect", self.cluster.service("hub")))[0]["Spec"]

    def _driver(self, name: str, token: str) -> Driver:
        """Wait until a hub runs, and start its driver."""
        wait_for(f"{name} runs", lambda: self.cluster.running(name), timeout=120)
        node: Node = self.cluster.node_of(name)
        container = node.container(name)
        ask = (
            "docker", "exec", container, "python3", "-c",
            "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8081/hub/health').status)",
        )  # fmt: skip
        wait_for(f"{name} answers", lambda: node.run(*ask), timeout=120)
        settings = {
            "hub": "http://127.0.0.1:8081/hub",
            "token": token,
            "pid": int(node.run("docker", "exec", container, "python3", "-c", HUB_PID)),
            "docker": "http://docker-api:2375",
        }
        script = Driver.script("python3", settings)
        return Driver(node.command("docker", "exec", "--interactive", container, *script))

    def image(self, name: str) -> str:
        """Reference of an image of the cluster, by digest, as the node has it."""
        node = self.cluster.nodes[self.cluster.groups["swarm"][-1]]
        lines = node.run(
            "docker", "image", "ls", "--digests", "--format", "{{.Repository}}@{{.Digest}}"
        ).split()
        (found,) = {line for line in lines if line.partition("@")[0].endswith(f"/{name}")}
        return found

    def machine(self) -> dict[str, str]:
        """What a report tells of the nodes."""
        return {
            "nodes": str(len(self.cluster.nodes)),
            "node_kernel": self.cluster.manager.run("uname", "-r").strip(),
            "docker": self.cluster.docker("version", "--format", "{{.Server.Version}}").strip(),
        }


def hub_spec(deployed: dict[str, Any], name: str, config: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Specification of a benchmark's hub: the deployed one's, under another name and without its data.

    Args:
        deployed: The deployed hub's, as the Docker API gives it.
        name: Of the service, on all its networks.
        config: ID of the Docker config with jupyterhub_config.py, of the same name.
        settings: For it.
    """
    task = deployed["TaskTemplate"]
    container = dict(task["ContainerSpec"])
    user, _, group = str(container.get("User", "")).partition(":")
    container["Labels"] = {}
    container["Env"] = [*container.get("Env", []), f"BENCH={json.dumps(settings)}"]
    container["Args"] = ["jupyterhub", "-f", CONFIG_TARGET]
    container["Mounts"] = []
    file = {"Name": CONFIG_TARGET, "UID": user or "0", "GID": group or user or "0", "Mode": 0o444}
    container["Configs"] = [
        *container.get("Configs", []),
        {"ConfigID": config, "ConfigName": name, "File": file},
    ]
    networks = [{**network, "Aliases": [name]} for network in task["Networks"]]
    return {
        **deployed,
        "Name": name,
        "Labels": {},
        "TaskTemplate": {**task, "ContainerSpec": container, "Networks": networks},
    }


def parse_inventory(text: str) -> Path:
    """An inventory given on the command line, relative to the repository's root or absolute."""
    return ROOT / text
