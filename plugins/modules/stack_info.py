#!/usr/bin/python
"""Ansible module: which services of a Docker stack run as they are specified."""

from __future__ import annotations

DOCUMENTATION = r"""
module: stack_info
short_description: Tells whether all services of a Docker stack run
description:
  - Looks at the tasks of a stack's services and, with O(timeout), waits until all of them run with the
    specification that the service has now. Changes nothing.
options:
  name:
    description: Name of the stack.
    type: str
    required: true
  services:
    description: Names that the services have in the compose file.
    type: list
    elements: str
    required: true
  file:
    description: Compose file whose checksum is returned, so that one look tells what there is to do.
    type: path
  timeout:
    description: Seconds to wait for the services; V(0) looks once and never fails.
    type: int
    default: 0
requirements:
  - docker (Python) on a swarm manager
author:
  - Campus JupyterHub contributors
"""

EXAMPLES = r"""
- name: Wait for the hub
  campus.jupyterhub.stack_info:
    name: jupyterhub
    services: [hub, proxy]
    timeout: 120
"""

RETURN = r"""
api_version:
  description: Newest version of Docker's API that the manager speaks.
  type: str
  returned: always
checksum:
  description: SHA-1 of O(file), empty when there is none.
  type: str
  returned: always
converged:
  description: Whether every service runs as specified.
  type: bool
  returned: always
missing:
  description: Services that the swarm does not have.
  type: list
  elements: str
  returned: always
problems:
  description: One sentence for each service that does not run, with the newest error of its tasks.
  type: list
  elements: str
  returned: always
"""

import time  # noqa: E402 - Ansible reads the documentation above it

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

try:
    import docker
except ImportError:
    docker = None

POLL_SECONDS = 0.5


def wanted_tasks(service, tasks, active_nodes):
    """Return how many tasks the service wants.

    Args:
        service (dict): service as the Docker API has it.
        tasks (list[dict]): its tasks.
        active_nodes (int): number of nodes that take tasks.

    Returns:
        int: replicas, or for a global service the number of its live tasks (one at least).
    """
    mode = service["Spec"]["Mode"]
    if "Replicated" in mode:
        return mode["Replicated"].get("Replicas", 1)
    live = [task for task in tasks if task["DesiredState"] == "running"]
    return max(len(live), min(1, active_nodes))


def newest_error(tasks):
    """Return the newest error among tasks, or an empty string."""
    for task in sorted(tasks, key=lambda task: task["UpdatedAt"], reverse=True):
        error = task["Status"].get("Err")
        if error:
            return error
    return ""


def service_problem(service, tasks, active_nodes):
    """Say why a service does not run as specified.

    A task counts only when it was made from the container specification that the service has now, so that the
    old task of a service being updated is not taken for the new one.

    Returns:
        str: one sentence, empty when all is well.
    """
    spec = service["Spec"]["TaskTemplate"]
    running = [
        task
        for task in tasks
        if task["DesiredState"] == "running"
        and task["Status"]["State"] == "running"
        and task["Spec"]["ContainerSpec"] == spec["ContainerSpec"]
        and task["Spec"].get("ForceUpdate", 0) == spec.get("ForceUpdate", 0)
    ]
    wanted = wanted_tasks(service, tasks, active_nodes)
    if len(running) >= wanted:
        return ""
    error = newest_error(tasks)
    sentence = f"{service['Spec']['Name']}: {len(running)} of {wanted} tasks run"
    return f"{sentence} ({error})" if error else sentence


def look(client, name, services):
    """Look at the stack once.

    Returns:
        tuple[list[str], list[str]]: missing services, and a sentence for each one that does not run.
    """
    found = {
        service["Spec"]["Name"]: service
        for service in client.services(filters={"label": f"com.docker.stack.namespace={name}"})
    }
    names = [f"{name}_{service}" for service in services]
    missing = [full for full in names if full not in found]
    active = sum(1 for node in client.nodes() if node["Spec"]["Availability"] == "active")
    problems = [f"{full}: not deployed" for full in missing]
    for full in names:
        if full in found:
            tasks = client.tasks(filters={"service": full})
            problems.append(service_problem(found[full], tasks, active))
    return missing, [problem for problem in problems if problem]


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "services": {"type": "list", "elements": "str", "required": True},
            "file": {"type": "path"},
            "timeout": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    if docker is None:
        module.fail_json(msg="The Python package docker is missing on this host.")
    name, timeout = module.params["name"], module.params["timeout"]
    client = docker.APIClient(version="auto")
    deadline = time.monotonic() + timeout
    try:
        missing, problems = look(client, name, module.params["services"])
        while problems and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            missing, problems = look(client, name, module.params["services"])
    except docker.errors.APIError as error:
        module.fail_json(msg=f"Docker did not answer about the stack {name}: {error.explanation or error}")
    if problems and timeout:
        module.fail_json(msg=f"The stack {name} does not run after {timeout} s: " + "; ".join(problems))
    path = module.params["file"]
    checksum = (path and module.sha1(path)) or ""
    module.exit_json(
        changed=False,
        api_version=client.api_version,
        checksum=checksum,
        converged=not problems,
        missing=missing,
        problems=problems,
    )


if __name__ == "__main__":
    main()
