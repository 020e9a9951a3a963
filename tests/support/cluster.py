"""The cluster as its administrator sees it: the nodes over SSH, and Docker on a manager."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from inventory import Inventory
from playbook_run import interrupt, playbook

T = TypeVar("T")


class CommandError(AssertionError):
    """A command failed or took too long; carries its output."""


def run(command: list[str], *, timeout: float, stdin: str | None = None) -> str:
    """Run a command and return its standard output.

    Args:
        command: Program and arguments.
        timeout: Seconds until it is ended.
        stdin: Text for its standard input.

    Raises:
        CommandError: When it fails or does not end in time.
    """
    shown = shlex.join(command)
    try:
        # never this process's own: ssh makes it non-blocking, and Ansible refuses such a one
        done = subprocess.run(command, input=stdin or "", capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"no end after {timeout} s: {shown}\n{error.stdout}\n{error.stderr}") from error
    if done.returncode:
        raise CommandError(f"exit code {done.returncode}: {shown}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def wait_for(what: str, condition: Callable[[], T], *, timeout: float, pause: float = 1.0) -> T:
    """Ask until the answer is true, and return it.

    Args:
        what: What is waited for, for the message.
        condition: Asked again and again; an AssertionError or a refused connection counts as "not yet".
        timeout: Seconds until the wait fails.
        pause: Seconds between two questions.

    Raises:
        AssertionError: At the deadline, with the last reason.
    """
    deadline = time.monotonic() + timeout
    reason: Exception | str = ""
    while True:
        try:
            answer = condition()
            if answer:
                return answer
            reason = f"last answer {answer!r}"
        except (AssertionError, OSError) as error:
            reason = error
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout} s ({reason})")
        time.sleep(pause)


def processes() -> Iterator[tuple[int, list[str]]]:
    """Every process of this machine with its arguments."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield int(path.parent.name), path.read_bytes().decode(errors="replace").split("\0")


class Node:
    """One server of the inventory."""

    def __init__(self, inventory: Inventory, name: str) -> None:
        """Take the connection's parameters from the inventory."""
        self.name = name
        self.address = inventory.value(name, "swarm_address | default(ansible_host)", name)
        host = inventory.value(name, "ansible_host", name)
        user = inventory.value(name, "ansible_user", "")
        key = inventory.value(name, "ansible_ssh_private_key_file", "")
        port = inventory.value(name, "ansible_port", 22)
        more = [inventory.value(name, f"ansible_ssh_{kind}_args", "") for kind in ("common", "extra")]
        self._sudo = [] if user == "root" else ["sudo", "-n"]
        self._ssh = [
            "ssh",
            *("-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-p", str(port)),
            *("-o", "ControlMaster=auto", "-o", "ControlPersist=60", "-o", "ControlPath=~/.ssh/campus-%C"),
            *(("-i", key) if key else ()),
            *shlex.split(" ".join(more)),
            f"{user}@{host}" if user else host,
        ]

    def run(self, *command: str, timeout: float = 60, stdin: str | None = None) -> str:
        """Run a command as root on the node and return what it prints."""
        return run(self.command(*command), timeout=timeout, stdin=stdin)

    def command(self, *command: str) -> list[str]:
        """The local command that runs one as root on the node."""
        Path("~/.ssh").expanduser().mkdir(mode=0o700, exist_ok=True)
        return [*self._ssh, shlex.join([*self._sudo, *command])]

    def stat(self, path: str) -> dict[str, Any]:
        """Owner and mode of a file, as numbers: {"uid", "gid", "mode"}."""
        uid, gid, mode = self.run("stat", "--format", "%u %g %a", path).split()
        return {"uid": int(uid), "gid": int(gid), "mode": mode}

    def container(self, service: str) -> str:
        """Id of the running container of a swarm service on this node.

        Raises:
            AssertionError: When there is none.
        """
        label = f"label=com.docker.swarm.service.name={service}"
        found = self.run("docker", "ps", "--quiet", "--filter", label).split()
        assert found, f"no container of {service} on {self.name}"
        return found[0]


class Cluster:
    """The deployment of one inventory."""

    def __init__(self, inventory: Path) -> None:
        """Read the inventory; nothing is contacted yet."""
        self.inventory = Inventory(inventory)
        self.groups = self.inventory.groups
        self.nodes = {name: Node(self.inventory, name) for name in self.groups["swarm"]}
        self.manager = self.nodes[self.groups["managers"][0]]
        self.storage = self.nodes[self.groups["storage"][0]]
        self.storage_dir = self.value("nfs_data_dir", "/srv/campus-jupyterhub/nfs")
        self.url = os.environ.get("CAMPUS_URL") or f"https://{self.storage.address}"
        self.ca = os.environ.get("CAMPUS_CA") or str(inventory / "secrets" / "ca.crt")
        self._hostnames: dict[str, str] = {}

    def value(self, expression: str, default: Any = None) -> Any:
        """Evaluate an expression with the first manager's variables."""
        return self.inventory.value(self.groups["managers"][0], expression, default)

    def playbook(self, name: str, *arguments: str, timeout: float = 1800) -> dict[str, dict[str, int]]:
        """Run one of the playbooks, and return the recap's counters by host."""
        said = playbook(self.inventory.path, name, *arguments, timeout=timeout)
        recap = {
            host: {key: int(number) for key, number in re.findall(r"(\w+)=(\d+)", counters)}
            for host, counters in re.findall(r"^(\S+) +: (ok=.*)$", said, re.MULTILINE)
        }
        assert recap, said
        print(said)
        return recap

    def interrupted_playbook(self, name: str, moment: str, *arguments: str) -> None:
        """Run one of the playbooks until it prints a text, and kill it then, as the machine's end would."""
        interrupt(self.inventory.path, name, moment, *arguments)

    def docker(self, *arguments: str, timeout: float = 60) -> str:
        """Run the Docker command on the first manager."""
        return self.manager.run("docker", *arguments, timeout=timeout)

    def services(self) -> list[dict[str, Any]]:
        """All services of the swarm, as `docker service inspect` shows them."""
        ids = self.docker("service", "ls", "--quiet").split()
        return json.loads(self.docker("service", "inspect", *ids)) if ids else []

    def service(self, role: str) -> str:
        """Full name of a service of the cluster itself, such as `hub` or `accounts`, whatever its stack."""
        names = self.docker("service", "ls", "--format", "{{.Name}}").split()
        found = [name for name in names if name == role or name.endswith(f"_{role}")]
        assert len(found) == 1, f"service {role}: {found} among {names}"
        return found[0]

    def tasks(self, service: str) -> list[dict[str, str]]:
        """The tasks of a service that are meant to run: ID, Name, Node, CurrentState, Error."""
        lines = self.docker(
            "service", "ps", service, "--no-trunc", "--filter", "desired-state=running", "--format", "json"
        )
        return [json.loads(line) for line in lines.splitlines()]

    def running(self, service: str) -> bool:
        """Whether every task of the service runs, and there is at least one."""
        tasks = self.tasks(service)
        return bool(tasks) and all(task["CurrentState"].startswith("Running") for task in tasks)

    def node_of(self, service: str) -> Node:
        """The node on which a service with one task runs."""
        (task,) = self.tasks(service)
        return {self.hostname(node): node for node in self.nodes.values()}[task["Node"]]

    def node_names(self) -> dict[str, str]:
        """Swarm host name → inventory name, by the address."""
        ids = self.docker("node", "ls", "--quiet").split()
        members = json.loads(self.docker("node", "inspect", *ids))
        by_address = {node.address: name for name, node in self.nodes.items()}
        return {
            member["Description"]["Hostname"]: by_address[self._address(member)]
            for member in members
            if self._address(member) in by_address
        }

    def hostname(self, node: Node) -> str:
        """Name of a node in the swarm: the server's own, which nothing here changes."""
        if node.name not in self._hostnames:
            self._hostnames |= {name: host for host, name in self.node_names().items()}
        return self._hostnames[node.name]

    @staticmethod
    def _address(member: dict[str, Any]) -> str:
        """Address of a swarm member; a leading manager's own status may say 0.0.0.0."""
        address = member["Status"].get("Addr", "")
        if address in ("", "0.0.0.0", "127.0.0.1"):  # noqa: S104 - compared, not bound
            address = member.get("ManagerStatus", {}).get("Addr", "").rsplit(":", 1)[0]
        return address

    def notebook(self, username: str) -> str | None:
        """Name of the service that runs a user's server, None when there is none."""
        return next(iter(self.notebooks(username)), None)

    def notebooks(self, username: str) -> list[str]:
        """Names of the services that run a user's servers."""
        label = f"label=org.jupyterhub.user={username}"
        return self.docker("service", "ls", "--filter", label, "--format", "{{.Name}}").split()

    def log(self, role: str, since: float) -> str:
        """What a service of the cluster itself, with one task, has said since a time (of time.time())."""
        service = self.service(role)
        node = self.node_of(service)
        # Docker puts each stream of the container into the same one of its own.
        script = f"docker logs --since {int(since)} {node.container(service)} 2>&1"
        return node.run("sh", "-c", script)

    @contextlib.contextmanager
    def without_service(self, role: str) -> Iterator[None]:
        """Take a service down for the length of a block."""
        name = self.service(role)
        self.docker("service", "scale", "--detach", f"{name}=0")
        try:
            wait_for(f"{name} down", lambda: not self._containers(name), timeout=120)
            yield
        finally:
            self.docker("service", "scale", "--detach", f"{name}=1")
            wait_for(f"{name} up again", lambda: self.running(name), timeout=180)

    def _containers(self, service: str) -> list[str]:
        label = f"label=com.docker.swarm.service.name={service}"
        return [
            found
            for node in self.nodes.values()
            for found in node.run("docker", "ps", "--quiet", "--filter", label).split()
        ]

    @property
    def nfs_container(self) -> str:
        """Name of the NFS server's container on the storage node, running or not."""
        names = self.storage.run("docker", "ps", "--all", "--format", "{{.Names}}").split()
        found = [name for name in names if re.fullmatch(r"(.*-)?nfs", name)]
        assert len(found) == 1, f"the NFS server's container is one of {names}"
        return found[0]

    @contextlib.contextmanager
    def without_storage(self) -> Iterator[None]:
        """Stop the NFS server for the length of a block.

        No node knows its files any more, as after a minute (acregmax and acdirmax of nfs(5)): whoever looks
        at one waits until the server is back.
        """
        name = self.nfs_container
        self.storage.run("docker", "stop", name, timeout=120)
        try:
            for node in self.nodes.values():
                node.run("sysctl", "--quiet", "vm.drop_caches=2")
            yield
        finally:
            self.storage.run("docker", "start", name, timeout=120)

    @contextlib.contextmanager
    def closed(self, *nodes: Node) -> Iterator[None]:
        """Keep new tasks off nodes for the length of a block, without moving those that run there."""
        hosts = [self.hostname(node) for node in nodes]
        try:
            for host in hosts:
                self.docker("node", "update", "--availability", "pause", host)
            yield
        finally:
            for host in hosts:
                self.docker("node", "update", "--availability", "active", host)

    @contextlib.contextmanager
    def lost(self, node: Node) -> Iterator[None]:
        """Cut a node off from all others for the length of a block; it runs on and SSH still reaches it."""
        node.run("nft", "--file", "-", stdin=CUT_OFF)
        try:
            yield
        finally:
            node.run("nft", "delete", "table", "inet", "campus_test")
            wait_for(f"{node.name} back", lambda: self.node_status(node) == "ready", timeout=180)

    @contextlib.contextmanager
    def without_power(self, node: Node) -> Iterator[None]:
        """End a lab node's process for the length of a block, like a power cut; lab.yml starts it again."""
        mark = f"umid=campus-{self.value('lab_name')}-{node.name}"
        pids = [pid for pid, arguments in processes() if mark in arguments]
        assert pids, f"no process of {node.name}"
        # They are root's. UML's own helpers end with it, so that kill may find fewer.
        kill = ["kill", "-KILL", *map(str, pids)]
        subprocess.run(kill if os.geteuid() == 0 else ["sudo", "-n", *kill], check=False)
        wait_for("its end", lambda: not any(mark in arguments for _, arguments in processes()), timeout=30)
        try:
            yield
        finally:
            self.playbook("lab.yml")
            wait_for(f"{node.name} back", lambda: self.node_status(node) == "ready", timeout=180)

    @contextlib.contextmanager
    def without_export(self, name: str) -> Iterator[None]:
        """Let the NFS server serve an export under another name for the length of a block."""
        config = f"{self.value('nfs_config_dir', '/etc/campus-jupyterhub/nfs')}/ganesha.conf"
        right = self.storage.run("cat", config)
        wrong = right.replace(f'Pseudo = "/{name}"', f'Pseudo = "/no-{name}"')
        assert wrong != right
        try:
            self._serve(config, wrong)
            yield
        finally:
            self._serve(config, right)

    def _serve(self, config: str, text: str) -> None:
        # written in place: the container sees this file, whatever takes its name
        self.storage.run("tee", config, stdin=text)
        self.storage.run("docker", "restart", self.nfs_container, timeout=120)
        wait_for("the storage", lambda: self.accounts("GET", "/healthz")[0] == 200, timeout=120)

    def node_status(self, node: Node) -> str:
        """What the swarm says about a node: `ready` or `down`."""
        return self.docker("node", "inspect", "--format", "{{.Status.State}}", self.hostname(node)).strip()

    def restart(self, role: str, timeout: float = 180) -> None:
        """Replace the task of a service of the cluster itself and wait for the new one."""
        name = self.service(role)
        before = {task["ID"] for task in self.tasks(name)}
        self.docker("service", "update", "--detach", "--force", name)
        wait_for(
            f"{name} replaced",
            lambda: self.running(name) and before.isdisjoint(task["ID"] for task in self.tasks(name)),
            timeout=timeout,
        )

    def accounts(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """Ask the accounts service from inside its container, where its token and its network are.

        Args:
            method: HTTP method.
            path: Path and query, already quoted.
            body: Sent as JSON.

        Returns:
            Status and the answer, decoded if it is JSON.
        """
        return self.accounts_all([{"method": method, "path": path, "body": body}])[0]

    def accounts_all(self, requests: list[dict[str, Any]]) -> list[tuple[int, Any]]:
        """Ask the accounts service one thing after the other, from inside its container.

        Args:
            requests: `method`, `path` and `body` of each, as `accounts` takes them.

        Returns:
            Status and answer of each.
        """
        container = self.storage.container(self.service("accounts"))
        command = ("docker", "exec", "--interactive", container, "python3", "-c", ACCOUNTS_CLIENT)
        answers = json.loads(self.storage.run(*command, stdin=json.dumps(requests)))
        for answer in answers:
            with contextlib.suppress(ValueError):
                answer["text"] = json.loads(answer["text"])
        return [(answer["status"], answer["text"]) for answer in answers]


# Everything but SSH is dropped, before any other table sees it.
CUT_OFF = """
table inet campus_test {
    chain input {
        type filter hook input priority -500; policy drop;
        iifname "lo" accept
        tcp dport 22 accept
    }
    chain output {
        type filter hook output priority -500; policy drop;
        oifname "lo" accept
        tcp sport 22 accept
    }
}
"""

# Runs in the accounts container; the requests come on standard input, so that no name meets a shell.
ACCOUNTS_CLIENT = """
import json, sys, urllib.error, urllib.request
token = open("/run/secrets/accounts_token").read().strip()
answers = []
for asked in json.load(sys.stdin):
    request = urllib.request.Request(
        "http://accounts:8080" + asked["path"], method=asked["method"],
        data=None if asked["body"] is None else json.dumps(asked["body"]).encode(),
        headers={"Authorization": "Bearer " + token, "Content-Type": "application/json"})
    try:
        answer = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        answer = error
    answers.append({"status": answer.status, "text": answer.read().decode()})
print(json.dumps(answers))
"""
