"""What a real swarm said about tasks, as `record_tasks.py` has written it down."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).resolve().parents[1] / "unit/recorded"
# Names of environment variables whose values are nobody else's business.
SECRET = re.compile(r"(?P<name>\w*(TOKEN|SECRET|PASSWORD|KEY)\w*)=.*", re.DOTALL)

Task = dict[str, Any]


def pack(tasks: list[Task]) -> list[Task]:
    """Leave of each task what differs from the one before it: what happened shows, and nothing is lost.

    Args:
        tasks: One after the other, as Docker told them.

    Returns:
        The first whole, and so is another one or one that has lost a member; of the others what changed.
    """
    packed: list[Task] = []
    before: Task = {}
    for task in tasks:
        same = task["ID"] == before.get("ID") and task.keys() >= before.keys()
        packed.append(
            {key: task[key] for key in task if key not in before or task[key] != before[key]}
            if same
            else task
        )
        before = task
    return packed


def unpack(packed: list[Task]) -> list[Task]:
    """Undo `pack`."""
    tasks: list[Task] = []
    for changes in packed:
        tasks.append(changes if "ID" in changes else {**tasks[-1], **changes})
    return tasks


def redact(task: Task) -> Task:
    """The task with a placeholder for every secret in its environment, and otherwise as it is."""
    container = task["Spec"]["ContainerSpec"]
    if "Env" not in container:
        return task
    env = [SECRET.sub(r"\g<name>=REDACTED", pair) for pair in container["Env"]]
    return {**task, "Spec": {**task["Spec"], "ContainerSpec": {**container, "Env": env}}}


def file_of(case: str) -> str:
    """Name of the file of a case's tasks."""
    return f"tasks/{case.replace(' ', '-')}.json"


def cases() -> list[str]:
    """Names of all recorded cases."""
    return sorted(path.stem.replace("-", " ") for path in (DIRECTORY / "tasks").iterdir())


def recorded(case: str, part: str = "tasks") -> list[Task]:
    """The tasks of a case, one after the other as Docker told them.

    Args:
        case: Its name.
        part: `tasks` until the service's removal, `removed` after it.
    """
    return unpack(json.loads((DIRECTORY / file_of(case)).read_text())[part])


def refused(case: str) -> dict[str, Any]:
    """Status and explanation of docker-py's APIError of a case."""
    return json.loads((DIRECTORY / "errors.json").read_text())[case]


def node(node_id: str, state: str = "ready") -> dict[str, Any]:
    """A node of the recorded tasks, when it was in a state."""
    nodes = json.loads((DIRECTORY / "nodes.json").read_text())
    # nodes.json may tell of it several times, in its order
    return [one for one in nodes if one["ID"] == node_id and one["Status"]["State"] == state][-1]
