#!/usr/bin/python
"""Ansible module: what one server knows about the state of the cluster."""

from __future__ import annotations

DOCUMENTATION = r"""
module: status_info
short_description: What one server knows about the state of the cluster
description:
  - Looks at Docker's images and containers, on a manager at the swarm, on the storage node at the storage,
    and asks whether the hub answers. Changes nothing.
  - Never fails because something does not answer; that is what it is asked for.
options:
  data_dir:
    description: Directory with the homes and the accounts; empty on servers that have none.
    type: path
  archive_dir:
    description: Directory with the archives of homes.
    type: path
    required: true
  hub_address:
    description: Address where the edge listens on port 443; empty to ask nobody.
    type: str
    default: ""
  hub_domain:
    description: Name under which the hub is opened.
    type: str
    default: ""
  timeout:
    description: Seconds to wait for Docker and for the hub.
    type: int
    default: 10
requirements:
  - docker (Python)
author:
  - Campus JupyterHub contributors
"""

EXAMPLES = r"""
- name: Look at the server
  campus.jupyterhub.status_info:
    archive_dir: /srv/campus-jupyterhub/archive
    hub_address: 192.0.2.11
    hub_domain: jupyterhub.example.org
"""

RETURN = r"""
engine:
  description: >-
    C(node), the server's ID in the swarm, C(images) (id, names, created, size), and C(used), the ids of
    running containers' images; or C(error).
  type: dict
  returned: always
swarm:
  description: >-
    On a manager C(nodes), C(services) and C(wanted), the images that the hub starts; or C(error). Else empty.
  type: dict
  returned: always
storage:
  description: >-
    With O(data_dir) C(path), C(size), C(used), C(free), C(accounts), C(locked), C(homes) and C(archives); or
    C(error).
  type: dict
  returned: always
hub:
  description: With O(hub_address) C(status), C(seconds) and the C(certificate) that was shown; or C(error).
  type: dict
  returned: always
"""

import base64  # noqa: E402 - Ansible reads the documentation above it
import collections  # noqa: E402
import os  # noqa: E402
import pathlib  # noqa: E402
import re  # noqa: E402
import socket  # noqa: E402
import ssl  # noqa: E402
import time  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

try:
    import docker
except ImportError:
    docker = None

NOTEBOOK = "org.jupyterhub.user"
IMAGE = re.compile(r"[\w.:/-]+@sha256:[0-9a-f]{64}")


def engine_state(client):
    """Return what there is on this server.

    Args:
        client (docker.APIClient): the server's Docker.
    """
    return {
        "node": client.info().get("Swarm", {}).get("NodeID", ""),
        "images": [
            {
                "id": image["Id"],
                "names": (image.get("RepoTags") or []) + (image.get("RepoDigests") or []),
                "created": image["Created"],
                "size": image["Size"],
            }
            for image in client.images()
        ],
        "used": sorted({container["ImageID"] for container in client.containers()}),
    }


def node_state(node, notebooks):
    """Return a node of the swarm as the report has it.

    Args:
        node (dict): the node as the Docker API has it.
        notebooks (dict[str, int]): running notebooks by node.
    """
    manager = node.get("ManagerStatus", {})
    return {
        "id": node["ID"],
        "name": node["Description"]["Hostname"],
        "address": node["Status"].get("Addr", ""),
        "role": node["Spec"]["Role"],
        "availability": node["Spec"]["Availability"],
        "state": node["Status"]["State"],
        "manager": "leader" if manager.get("Leader") else manager.get("Reachability", ""),
        "engine": node["Description"]["Engine"].get("EngineVersion", ""),
        "notebooks": notebooks.get(node["ID"], 0),
    }


def service_state(service, tasks):
    """Return a service as the report has it.

    Args:
        service (dict): the service as the Docker API has it.
        tasks (list[dict]): its tasks, those of the past included.
    """
    mode = service["Spec"]["Mode"]
    live = [task for task in tasks if task["DesiredState"] == "running"]
    newest = sorted(tasks, key=lambda task: task["UpdatedAt"], reverse=True)
    return {
        "name": service["Spec"]["Name"],
        "notebook": NOTEBOOK in (service["Spec"].get("Labels") or {}),
        "image": service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"],
        "desired": mode["Replicated"].get("Replicas", 1) if "Replicated" in mode else len(live),
        "running": sum(1 for task in live if task["Status"]["State"] == "running"),
        "error": next((task["Status"]["Err"] for task in newest if task["Status"].get("Err")), ""),
    }


def swarm_state(client):
    """Return what a manager knows.

    Args:
        client (docker.APIClient): the server's Docker; nothing is known if it is no manager's.
    """
    if not client.info().get("Swarm", {}).get("ControlAvailable"):
        return {}
    tasks = collections.defaultdict(list)
    for task in client.tasks():
        tasks[task["ServiceID"]].append(task)
    services = client.services()
    notebooks = collections.Counter(
        task.get("NodeID", "")
        for service in services
        if NOTEBOOK in (service["Spec"].get("Labels") or {})
        for task in tasks[service["ID"]]
        if task["DesiredState"] == task["Status"]["State"] == "running"
    )
    wanted = set()
    for service in services:
        for config in service["Spec"]["TaskTemplate"]["ContainerSpec"].get("Configs") or []:
            # The hub's file names the images of notebooks, whether one runs or not.
            if config["ConfigName"].startswith("jupyterhub_jupyterhub_config"):
                data = client.inspect_config(config["ConfigID"])["Spec"]["Data"]
                wanted |= set(IMAGE.findall(base64.b64decode(data).decode()))
    return {
        "nodes": [node_state(node, notebooks) for node in client.nodes()],
        "services": [service_state(service, tasks[service["ID"]]) for service in services],
        "wanted": sorted(wanted),
    }


def storage_state(data_dir, archive_dir):
    """Return how full the storage is, and what is on it.

    Raises:
        OSError: it cannot be read.
    """
    data = pathlib.Path(data_dir)
    found = os.statvfs(data)
    locks, archives = data / "accounts/locked", pathlib.Path(archive_dir)
    with os.scandir(data / "homes") as entries:
        homes = sum(1 for one in entries if one.name[0] != "." and one.is_dir(follow_symlinks=False))
    passwd = (data / "accounts/passwd").read_text(encoding="utf-8").splitlines()
    return {
        "path": data_dir,
        "size": found.f_blocks * found.f_frsize,
        "used": (found.f_blocks - found.f_bfree) * found.f_frsize,
        "free": found.f_bavail * found.f_frsize,
        "accounts": sum(1 for line in passwd if line and line[0] != "#"),
        "locked": len(list(locks.iterdir())) if locks.is_dir() else 0,
        "homes": homes,
        "archives": len(list(archives.glob("*.tar.gz"))) if archives.is_dir() else 0,
    }


def hub_state(address, domain, timeout):
    """Ask the hub for its health, as a browser would come to it.

    Whose certificate it shows is told and not judged here.

    Raises:
        OSError: it does not answer.
    """
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    started = time.monotonic()
    with (
        socket.create_connection((address, 443), timeout=timeout) as plain,
        context.wrap_socket(plain, server_hostname=domain or None) as connection,
    ):
        request = f"GET /hub/health HTTP/1.1\r\nHost: {domain or address}\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode())
        first = connection.makefile("rb").readline().decode(errors="replace").split()
        return {
            "status": int(first[1]) if len(first) > 1 and first[1].isdigit() else 0,
            "seconds": round(time.monotonic() - started, 2),
            "certificate": ssl.DER_cert_to_PEM_cert(connection.getpeercert(binary_form=True)),
        }


def ask_docker(function, timeout):
    """Return what a function finds out from this server's Docker."""
    return function(docker.APIClient(version="auto", timeout=timeout))


def told(function, *args):
    """Return what a function returns, or why it cannot.

    Args:
        function (Callable): what to do.
        args (Any): its arguments.
    """
    try:
        return function(*args)
    except OSError as error:
        return {"error": error.strerror or str(error) or type(error).__name__}
    except docker.errors.DockerException as error:
        return {"error": str(getattr(error, "explanation", None) or error)}


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "data_dir": {"type": "path"},
            "archive_dir": {"type": "path", "required": True},
            "hub_address": {"type": "str", "default": ""},
            "hub_domain": {"type": "str", "default": ""},
            "timeout": {"type": "int", "default": 10},
        },
        supports_check_mode=True,
    )
    if docker is None:
        module.fail_json(msg="The Python package docker is missing on this host.")
    asked = module.params
    timeout = asked["timeout"]
    result = {
        "engine": told(ask_docker, engine_state, timeout),
        "swarm": told(ask_docker, swarm_state, timeout),
        "storage": {},
        "hub": {},
    }
    if asked["data_dir"]:
        result["storage"] = told(storage_state, asked["data_dir"], asked["archive_dir"])
    if asked["hub_address"]:
        result["hub"] = told(hub_state, asked["hub_address"], asked["hub_domain"], timeout)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
