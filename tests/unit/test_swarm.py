"""Who forms, leaves and joins the swarm, after what may have happened to a node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROLE = Path(__file__).resolve().parents[2] / "roles/swarm"
MANAGERS, WORKERS = ["m1", "m2"], ["w1"]
HOSTS = MANAGERS + WORKERS


def told(host: str, **changes: Any) -> dict[str, Any]:
    """What a member of a whole swarm says of itself, as discover.yml remembers it."""
    whole = {
        "host": host,
        "name": f"name-{host}",
        "address": f"192.0.2.{HOSTS.index(host) + 1}",
        "id": f"id-{host}",
    }
    return {**whole, "state": "active", "manager": host in MANAGERS, "error": "", "moved": False, **changes}


def member(host: str, **changes: Any) -> dict[str, Any]:
    """A line of the swarm's own list."""
    role = "manager" if host in MANAGERS else "worker"
    return {
        "ID": f"id-{host}",
        "Description": {"Hostname": f"name-{host}"},
        "Spec": {"Role": role},
        **changes,
    }


def asker(
    changes: dict[str, dict[str, Any]], members: list[dict[str, Any]] | None = None
) -> Callable[..., Any]:
    """Who fills in templates as the role does.

    Args:
        changes: What is other than in a whole swarm, by host.
        members: The list of whoever is asked; by default that of the whole swarm.
    """
    loader = DataLoader()
    rules = loader.load_from_file(str(ROLE / "vars/main.yml"), trusted_as_template=True)
    listed = {"nodes": [member(host) for host in HOSTS] if members is None else members}
    hostvars = {
        host: {"__swarm_local": told(host, **changes.get(host, {})), "__swarm_members": listed}
        for host in HOSTS
    }
    variables = {**rules, "hostvars": hostvars, "swarm_managers": MANAGERS, "swarm_workers": WORKERS}

    def ask(template: str, host: str = "m1") -> Any:
        templar = Templar(loader=loader, variables={**variables, "inventory_hostname": host})
        return templar.template(trust_as_template(template))

    return ask


def plan(changes: dict[str, dict[str, Any]], members: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """What the role makes of it."""
    fill = asker(changes, members)

    def ask(expression: str, host: str = "m1") -> Any:
        return fill(f"{{{{ {expression} }}}}", host)

    return {
        "leader": ask("__swarm_leader"),
        "reform": ask("__swarm_reform"),
        "join": [host for host in HOSTS if ask("__swarm_outsider", host)],
        "forget": [line["ID"] for line in ask("__swarm_stale")],
        "strangers": [line["ID"] for line in ask("__swarm_strangers")],
        "ended": ask("__swarm_ended | length > 0 and __swarm_acting | length == 0"),
    }


EXPIRED = {"id": "", "state": "error", "manager": False, "error": "expired"}
BARE = {"id": "", "state": "inactive", "manager": False}
WHOLE = {"leader": "m1", "reform": False, "join": [], "forget": [], "strangers": [], "ended": False}
CASES = {
    "whole": ({}, None, WHOLE),
    "bare": (dict.fromkeys(HOSTS, BARE), [], WHOLE | {"join": ["m2", "w1"]}),
    "a worker was reset": ({"w1": BARE}, None, WHOLE | {"join": ["w1"], "forget": ["id-w1"]}),
    "a worker has another address": (
        {"w1": {"moved": True}},
        None,
        WHOLE | {"join": ["w1"], "forget": ["id-w1"]},
    ),
    "the first manager was reset": (
        {"m1": BARE},
        None,
        WHOLE | {"leader": "m2", "join": ["m1"], "forget": ["id-m1"]},
    ),
    "the first manager has another address": (
        {"m1": {"moved": True}},
        None,
        WHOLE | {"leader": "m2", "join": ["m1"], "forget": ["id-m1"]},
    ),
    "all have other addresses": (
        {host: {"moved": True} for host in HOSTS},
        None,
        WHOLE | {"reform": True, "join": ["m2", "w1"], "forget": ["id-m2", "id-w1"]},
    ),
    "no quorum": (
        {"m1": {"error": "no leader"}, "m2": BARE},
        [],
        WHOLE | {"reform": True, "join": ["m2", "w1"]},
    ),
    "a worker of another swarm": (
        {"w1": {"id": "id-other"}},
        None,
        WHOLE | {"join": ["w1"], "forget": ["id-w1"]},
    ),
    "a manager that the swarm takes for a worker": (
        {},
        [member("m1"), member("m2", Spec={"Role": "worker"}), member("w1")],
        WHOLE | {"join": ["m2"], "forget": ["id-m2"]},
    ),
    "a member that left the inventory": (
        {},
        [member(host) for host in [*HOSTS, "m3"]],
        WHOLE | {"strangers": ["id-m3"]},
    ),
    "all were off until their certificates had run out": (
        dict.fromkeys(MANAGERS, EXPIRED),
        [],
        WHOLE | {"join": ["m2", "w1"], "ended": True},
    ),
    "a join that did not end": (
        {"w1": {"id": "", "state": "pending"}},
        [member("m1"), member("m2")],
        WHOLE | {"join": ["w1"]},
    ),
}


@pytest.mark.parametrize(("changes", "members", "expected"), CASES.values(), ids=CASES)
def test_what_a_run_does(changes, members, expected) -> None:
    assert plan(changes, members) == expected


@pytest.mark.parametrize(("changes", "members"), [case[:2] for case in CASES.values()], ids=CASES)
def test_sentences_can_be_filled_in_whatever_happened(changes, members) -> None:
    """Ansible does so before it looks whether there is anything to say."""
    ask = asker(changes, members)
    tasks = yaml.safe_load((ROLE / "tasks/preflight.yml").read_text())
    sentences = [ask(task["ansible.builtin.assert"]["fail_msg"], host) for task in tasks for host in HOSTS]
    assert all(sentences)
    if plan(changes, members)["ended"]:
        assert any("Docker says on m1, m2: expired. If that cannot be mended" in text for text in sentences)
