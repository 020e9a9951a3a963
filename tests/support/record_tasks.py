"""Record what a real swarm says about tasks that fail, for the unit tests of the spawner.

It needs the Docker of a manager, for example through SSH:

    ssh -N -L /tmp/manager.sock:/var/run/docker.sock root@MANAGER &
    export DOCKER_HOST=unix:///tmp/manager.sock

    record_tasks.py provoke DIRECTORY --image IMAGE --storage ADDRESS

makes services of its own that fail in every way that harms nobody else, and one network for them. The image
needs `sh` and `sleep`, and must be one that all nodes can get; the storage is an NFS server.

    record_tasks.py watch DIRECTORY

looks on until it is interrupted, once a second, while others make servers: `tests/e2e/test_failures.py` cuts
nodes off. It goes on when the connection is back; on a worker it records how that refuses.

Both write `tasks/CASE.json`, `nodes.json` and `errors.json` as `recording.py` reads them. Secrets of an
environment are redacted, everything else is as Docker told it. What a test uses goes into
`tests/unit/recorded`, and what was watched gets the name of its case: `node lost`, and among the errors
`no leader`, `leader is late` and `not a manager`. `nodes.json` has to tell of all nodes of the tasks, and of
the lost one as down.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from docker import APIClient
from docker.errors import APIError, DockerException
from docker.utils import kwargs_from_env
from recording import Task, file_of, pack, redact
from requests.exceptions import RequestException

LABEL = "campus-test-recording"
NETWORK = LABEL
FULL_NETWORK = LABEL + "-full"
FULL_SUBNET = "198.18.78.0/29"  # eight addresses, and two of them are Docker's
ENDED = {"complete", "shutdown", "failed", "rejected", "remove", "orphaned"}
AT_ONCE = 3  # cases beside each other: some wait for minutes until the kernel gives a mount up
QUIET = 4  # seconds without news, after which a task that runs or waits stays as it is
LONGEST = 120  # seconds for a case
SECOND = 10**9  # Docker counts nanoseconds


def shell(script: str) -> dict[str, Any]:
    """A task that runs a script."""
    return {"ContainerSpec": {"Command": ["sh"], "Args": ["-c", script]}}


def program(path: str, *, init: bool) -> dict[str, Any]:
    """A task that runs something that may not be a program, with Docker's init before it or without."""
    return {"ContainerSpec": {"Command": [path], "Args": [], "Init": init}}


def mount(**options: str) -> dict[str, Any]:
    """A task with a volume, without a name: it is removed with its container."""
    driver = {"Name": "local", "Options": options}
    return {
        "ContainerSpec": {
            "Mounts": [{"Type": "volume", "Target": "/x", "VolumeOptions": {"DriverConfig": driver}}]
        }
    }


def nfs(address: str, options: str = "nfsvers=4.2", device: str = ":/") -> dict[str, Any]:
    """A task with a volume on an NFS server."""
    return mount(type="nfs4", o=f"addr={address},{options}", device=device)


def provoked(storage: str) -> dict[str, dict[str, Any]]:
    """What differs from a task that runs, for each case.

    Args:
        storage: Address of the NFS server.
    """
    nobody = storage.rpartition(".")[0] + ".251"
    return {
        "runs": {},
        "mount that works": nfs(storage),
        "image missing by digest": {"ContainerSpec": {"Image": "IMAGE@sha256:" + "0" * 64}},
        "image missing by tag": {"ContainerSpec": {"Image": "IMAGE:no-such-tag"}},
        "image missing without registry": {"ContainerSpec": {"Image": "127.0.0.1:9/nothing:1"}},
        "mount connection refused": nfs(storage, "nfsvers=4.2,port=9"),
        "mount no route": nfs(nobody, "nfsvers=4.2,soft,timeo=20,retrans=1"),
        "mount no such directory": nfs(storage, device=":/no-such-export"),
        "mount protocol": nfs(storage, "nfsvers=4.0"),
        "mount invalid argument": nfs(storage, "nfsvers=4.2,no-such-option"),
        "mount no such device": mount(type="nfs5", o=f"addr={storage}", device=":/"),
        "mount no such source": {
            "ContainerSpec": {"Mounts": [{"Type": "bind", "Source": "/no/such", "Target": "/x"}]}
        },
        "mount target invalid": {
            "ContainerSpec": {"Mounts": [{"Type": "volume", "Source": "x", "Target": "relative"}]}
        },
        "volume driver missing": {
            "ContainerSpec": {
                "Mounts": [
                    {
                        "Type": "volume",
                        "Target": "/x",
                        "VolumeOptions": {"DriverConfig": {"Name": "no-such-driver"}},
                    }
                ]
            }
        },
        "constraint": {"Placement": {"Constraints": ["node.labels.none==true"]}},
        "platform": {"Placement": {"Platforms": [{"Architecture": "s390x", "OS": "linux"}]}},
        "memory guarantee": {"Resources": {"Reservations": {"MemoryBytes": 900 * 2**30}}},
        "CPU guarantee": {"Resources": {"Reservations": {"NanoCPUs": 900 * SECOND}}},
        "generic resource": {
            "Resources": {
                "Reservations": {"GenericResources": [{"DiscreteResourceSpec": {"Kind": "gpu", "Value": 1}}]}
            }
        },
        "address pool empty": {"Networks": [{"Target": FULL_NETWORK}]},
        "exit code 0": shell("exit 0"),
        "exit code 3": shell("exit 3"),
        "exit code 126": shell("/etc/passwd"),
        "exit code 127": shell("no-such-command"),
        "ends after a while": shell("sleep 2; exit 1"),
        "killed": shell("kill -9 $$"),
        "out of memory": {
            **shell("x=x; while :; do x=$x$x; done"),
            "Resources": {"Limits": {"MemoryBytes": 64 * 2**20}},
        },
        "no such program": program("/no/such/program", init=True),
        "no such program without init": program("/no/such/program", init=False),
        "no program without init": program("no-such-program", init=False),
        "no permission without init": program("/etc/passwd", init=False),
        "directory without init": program("/etc", init=False),
        "directory": program("/etc", init=True),
        "no such working directory": {"ContainerSpec": {"Dir": "/etc/passwd"}},
    }


def refusals(client: APIClient, template: dict[str, Any]) -> dict[str, Any]:
    """Calls that Docker refuses, by case; without arguments.

    Args:
        client: Docker of a manager.
        template: A task that runs.
    """

    def create(name: str = "", **changes: Any) -> None:
        made = client.create_service(
            merge(template, changes), name=name or f"{LABEL}-refused", labels={LABEL: "refused"}
        )
        client.remove_service(made["ID"])

    def create_twice() -> None:
        made = client.create_service(template, name=f"{LABEL}-twice")
        try:
            client.create_service(template, name=f"{LABEL}-twice")
        finally:
            client.remove_service(made["ID"])

    unknown = {"Mounts": [{"Type": "nothing", "Source": "x", "Target": "/x"}]}
    twice = {"Mounts": [{"Type": "tmpfs", "Target": "/x"}, {"Type": "tmpfs", "Target": "/x"}]}
    return {
        "network not found": lambda: create(Networks=[{"Target": "no-such-network"}]),
        "name conflict": create_twice,
        "name invalid": lambda: create(name="-x"),
        "mount type invalid": lambda: create(ContainerSpec=unknown),
        "mount target twice": lambda: create(ContainerSpec=twice),
        "memory invalid": lambda: create(Resources={"Limits": {"MemoryBytes": 1}}),
        "image invalid": lambda: create(ContainerSpec={"Image": "IN VALID"}),
        "constraint invalid": lambda: create(Placement={"Constraints": ["nonsense"]}),
        "service not found": lambda: client.remove_service("no-such-service"),
        "tasks of no service": lambda: client.tasks(filters={"service": "no-such-service"}),
        "node not found": lambda: client.inspect_node("no-such-node"),
    }


def merge(template: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A task template with changes, those of the container one by one."""
    container = {**template["ContainerSpec"], **changes.get("ContainerSpec", {})}
    return {**template, **changes, "ContainerSpec": container}


class Notes:
    """What goes into the directory."""

    def __init__(self, directory: Path, engine: str) -> None:
        """Nothing is written yet.

        Args:
            directory: Where to write.
            engine: Version of Docker, to go into each file.
        """
        self.directory, self.engine = directory, engine
        self.tasks: dict[tuple[str, str], list[Task]] = {}
        self.nodes: list[dict[str, Any]] = []
        self.errors: dict[str, dict[str, Any]] = {}
        self._seen: set[Any] = set()
        (directory / "tasks").mkdir(parents=True, exist_ok=True)

    def note_tasks(self, case: str, found: list[Task], part: str = "tasks") -> bool:
        """Keep the tasks that say something new, and say whether there was one."""
        key = lambda task: (task["ID"], task["Version"]["Index"])  # noqa: E731
        new = sorted(
            (task for task in found if key(task) not in self._seen), key=lambda task: task["UpdatedAt"]
        )
        self._seen.update(map(key, new))
        self.tasks.setdefault((case, part), []).extend(map(redact, new))
        if new:
            parts = {name: pack(self.tasks.get((case, name), [])) for name in ("tasks", "removed")}
            self._write(file_of(case), {"engine": self.engine, **parts})
        return bool(new)

    def note_nodes(self, found: list[dict[str, Any]]) -> None:
        """Keep the nodes whose state is new."""
        for node in found:
            status = json.dumps([node["ID"], node["Status"], node["Spec"], node.get("ManagerStatus")])
            if status not in self._seen:
                self._seen.add(status)
                self.nodes.append(node)
                self._write("nodes.json", self.nodes)

    def note_error(self, case: str, error: APIError) -> None:
        """Keep a refusal."""
        self.errors[case] = {"status": error.status_code, "explanation": error.explanation}
        self._write("errors.json", self.errors)

    def _write(self, name: str, content: Any) -> None:
        (self.directory / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def connect() -> APIClient:
    """The Docker that the environment names."""
    return APIClient(**kwargs_from_env(), timeout=20)


def watch(directory: Path, label: str) -> None:
    """Write down what happens to the services with a label, until it is interrupted."""
    client = connect()
    notes, refusal = Notes(directory, client.version()["Version"]), ""
    while True:
        try:
            for task in client.tasks(filters={"label": label}):
                part = "removed" if task["DesiredState"] == "remove" else "tasks"
                notes.note_tasks(task["ServiceID"], [task], part)
            time.sleep(1)
            notes.note_nodes(client.nodes())
            refusal = ""
        except APIError as error:
            # the same again is no news
            if error.explanation != refusal:
                notes.note_error(f"at {time.time():.0f}", error)
            refusal = error.explanation
        except (DockerException, RequestException) as error:
            print(error, flush=True)
        time.sleep(1)


class Provoker:
    """Makes services that fail.

    Args:
        notes: Takes what Docker says.
        template: A task that runs.
    """

    def __init__(self, notes: Notes, template: dict[str, Any]) -> None:
        """See the class."""
        self.notes, self.template = notes, template

    def record(self, case: str, changes: dict[str, Any], meddle: Any = None) -> None:
        """Make a service, look on until nothing more happens, remove it and look on again.

        Args:
            case: Name of the case.
            changes: What differs from a task that runs.
            meddle: Called with Docker and the service's ID while it runs.
        """
        client = connect()
        name, labels = f"{LABEL}-{case.lower().replace(' ', '-')}"[:63], {LABEL: case.replace(" ", "-")}
        template = merge(self.template, changes)
        template["ContainerSpec"]["Labels"] = labels
        service = client.create_service(template, name=name, labels=labels)["ID"]
        try:
            self.look(client, case, "tasks", {"service": service})
            if meddle:
                meddle(client, service)
                self.look(client, case, "tasks", {"service": service})
        finally:
            client.remove_service(service)
        self.look(client, case, "removed", {"label": f"{LABEL}={labels[LABEL]}"})
        print(case, [task["Status"]["State"] for task in self.notes.tasks[case, "tasks"]], flush=True)

    def look(self, client: APIClient, case: str, part: str, filters: dict[str, str]) -> None:
        """Note every answer until nothing more is to come."""
        begun = news = time.monotonic()
        while time.monotonic() - begun < LONGEST:
            tasks = client.tasks(filters=filters)
            if self.notes.note_tasks(case, tasks, part):
                news = time.monotonic()
            states = {task["Status"]["State"] for task in tasks}
            waits = states <= {"new", "pending", "running", *ENDED}
            if part == "removed" and not tasks:
                return
            if part == "tasks" and tasks and waits and time.monotonic() - news > QUIET:
                return
            time.sleep(0.1)


def update(client: APIClient, service: str) -> None:
    """Change the service as an administrator may, so that swarm replaces its task."""
    found = client.inspect_service(service)
    spec = found["Spec"]
    template = merge(spec["TaskTemplate"], {"ContainerSpec": {"Env": ["MOTTO=nobody's business"]}})
    client.update_service(
        service, found["Version"]["Index"], template, spec["Name"], spec["Labels"], mode=spec["Mode"]
    )


def drain(client: APIClient, service: str) -> None:
    """Close the service's node until its task has ended there."""
    (task,) = client.tasks(filters={"service": service})
    set_availability(client, task["NodeID"], "drain")
    time.sleep(2 * QUIET)
    set_availability(client, task["NodeID"], "active")


def set_availability(client: APIClient, node_id: str, value: str) -> None:
    """Open or close a node."""
    node = client.inspect_node(node_id)
    client.update_node(node_id, node["Version"]["Index"], {**node["Spec"], "Availability": value})


@contextlib.contextmanager
def networks(client: APIClient, template: dict[str, Any]) -> Any:
    """The network of all cases, and one whose addresses are all taken."""
    client.create_network(NETWORK, driver="overlay")
    pool = {"Driver": "default", "Config": [{"Subnet": FULL_SUBNET}]}
    client.create_network(FULL_NETWORK, driver="overlay", ipam=pool)
    filler = client.create_service(
        merge(template, {"Networks": [{"Target": FULL_NETWORK}]}),
        name=f"{LABEL}-filler",
        mode={"Replicated": {"Replicas": 8}},
        endpoint_spec={"Mode": "dnsrr"},
    )
    try:
        time.sleep(4 * QUIET)
        yield
    finally:
        client.remove_service(filler["ID"])
        for network in (NETWORK, FULL_NETWORK):
            for _ in range(60):
                with contextlib.suppress(APIError):
                    client.remove_network(network)
                    break
                time.sleep(1)


def provoke(directory: Path, image: str, storage: str) -> None:
    """Record all cases that need no power cut."""
    client = connect()
    notes = Notes(directory, client.version()["Version"])
    template = {
        "ContainerSpec": {
            "Image": image,
            "Command": ["sleep"],
            "Args": ["600"],
            "Init": True,
            "StopGracePeriod": 2 * SECOND,
        },
        "RestartPolicy": {"Condition": "none"},
        "Networks": [{"Target": NETWORK}],
    }
    repository = image.partition("@")[0]
    with networks(client, template), ThreadPoolExecutor(AT_ONCE) as pool:
        notes.note_nodes(client.nodes())
        provoker = Provoker(notes, template)
        done = []
        for case, changes in provoked(storage).items():
            name = changes.get("ContainerSpec", {}).get("Image")
            if name:
                changes["ContainerSpec"]["Image"] = name.replace("IMAGE", repository)
            done.append(pool.submit(provoker.record, case, changes))
        done.append(pool.submit(provoker.record, "updated", {}, update))
        for one in done:
            if one.exception():
                print(repr(one.exception()), flush=True)
        # nobody else's service may move to where another case looks on
        provoker.record("closed", {"Placement": {"Constraints": ["node.role==worker"]}}, drain)
        for case, refused in refusals(client, template).items():
            try:
                refused()
            except APIError as error:
                notes.note_error(case, error)
            else:
                print(f"{case}: not refused")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("provoke", "watch"):
        sub = commands.add_parser(command)
        sub.add_argument("directory", type=Path)
        if command == "watch":
            sub.add_argument("--label", default="org.jupyterhub.key", help="of the services to look at")
        else:
            sub.add_argument("--image", required=True, help="with sh and sleep")
            sub.add_argument("--storage", required=True, help="address of an NFS server")
    options = vars(parser.parse_args())
    {"provoke": provoke, "watch": watch}[options.pop("command")](**options)


if __name__ == "__main__":
    main()
