"""A user whose servers are a few lines of Python, for tests of starts and stops."""

from __future__ import annotations

import uuid
from typing import Any

import requests
from cluster import Cluster, wait_for
from hub import HubUser

# Answers with the value that its start was given; that it is a JupyterHub server shows in the version header.
SERVER = """
import http.server, os, signal, sys, time, urllib.parse

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("X-JupyterHub-Version", os.environ.get("JUPYTERHUB_VERSION", "5"))
        self.end_headers()
        self.wfile.write(os.environ["START_VALUE"].encode())

    do_HEAD = do_GET

    def log_message(self, *args):
        pass

if os.environ.get("START_DEAF"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(float(os.environ["START_DELAY"]))
port = urllib.parse.urlparse(os.environ["JUPYTERHUB_SERVICE_URL"]).port
http.server.ThreadingHTTPServer(("0.0.0.0", port), Handler).serve_forever()
"""


class Student:
    """A user of a cluster whose hub takes traits of a start (tests/inventories/test).

    Attributes:
        hub: The user's session.
        value: What the last start was given.
    """

    def __init__(self, cluster: Cluster, hub: HubUser) -> None:
        """Nothing is started yet."""
        self.cluster = cluster
        self.hub = hub
        self.value = ""

    @staticmethod
    def options(value: str, *, delay: float = 0, deaf: bool = False, **traits: Any) -> dict[str, Any]:
        """Options of a start.

        Args:
            value: What the server answers with.
            delay: Seconds until it listens.
            deaf: Whether it ignores SIGTERM.
            traits: Further traits of the spawner.
        """
        environment = {
            "START_VALUE": value,
            "START_DELAY": str(delay),
            **({"START_DEAF": "1"} if deaf else {}),
        }
        return {"traits": {"cmd": ["python3", "-c", SERVER], "environment": environment, **traits}}

    def request_start(self, value: str, **options: Any) -> requests.Response:
        """Press start and do not wait."""
        return self.hub.request_start(self.options(value, **options))

    def start(self, **options: Any) -> list[str]:
        """Start with a value of its own, and return the progress page's messages."""
        self.value = uuid.uuid4().hex
        return self.hub.spawn(self.options(self.value, **options))

    def services(self) -> list[str]:
        """Names of the user's services."""
        return self.cluster.notebooks(self.hub.name)

    def image(self) -> str:
        """Reference of the running server's image."""
        (service,) = self.services()
        template = "{{.Spec.TaskTemplate.ContainerSpec.Image}}"
        return self.cluster.docker("service", "inspect", "--format", template, service).strip()

    def containers(self) -> list[str]:
        """Ids of the user's running containers on all nodes."""
        label = f"label=org.jupyterhub.user={self.hub.name}"
        nodes = self.cluster.nodes.values()
        return [name for node in nodes for name in node.run("docker", "ps", "-q", "--filter", label).split()]

    def volumes(self) -> dict[str, list[str]]:
        """Names of the volumes of the user's home by node."""
        return {
            node.name: node.run(
                "docker", "volume", "ls", "-q", "--filter", f"name=jupyter-home-{self.hub.name}-"
            ).split()
            for node in self.cluster.nodes.values()
        }

    def assert_one_server(self) -> None:
        """Exactly one service, and the one that answers is that of the last start."""
        answer = self.hub.api("GET", f"/user/{self.hub.name}/value")
        assert answer.status_code == 200, answer.text
        assert answer.text == self.value
        assert len(self.services()) == 1

    def kill_hub(self) -> None:
        """End the hub's process without a word, and wait for the hub that the swarm starts in its place."""
        service = self.cluster.service("hub")
        before = [task["ID"] for task in self.cluster.tasks(service)]
        node = self.cluster.node_of(service)
        node.run("docker", "kill", "--signal", "KILL", node.container(service))

        def replaced() -> bool:
            tasks = [task["ID"] for task in self.cluster.tasks(service)]
            return self.cluster.running(service) and not set(before) & set(tasks)

        wait_for("the next hub", replaced, timeout=180)
        wait_for("the hub's pages", self.hub.logged_in, timeout=180)
