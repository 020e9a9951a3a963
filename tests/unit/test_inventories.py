"""The sample inventory names no variable that nothing reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = sorted((ROOT / "inventories/production").rglob("*.yml"))
ROLES = [path.name for path in (ROOT / "roles").iterdir()]
# Set, or commented out; a commented line may also be prose, so what it begins with has to be ours.
NAMED = re.compile(rf"^\s*(?:#\s*)?((?:{'|'.join(ROLES)}|campus)_\w+):", re.MULTILINE)


def known() -> set[str]:
    """Names of all variables that a role describes or a playbook uses."""
    found: set[str] = set()
    for path in ROOT.glob("roles/*/meta/argument_specs.yml"):
        for entry in yaml.safe_load(path.read_text())["argument_specs"].values():
            found |= {*entry.get("options", {})}
    for path in (ROOT / "playbooks").rglob("*.yml"):
        found |= {*re.findall(r"\bcampus_\w+|\bcourses\b", path.read_text())}
    return found


def set_in(path: Path) -> Iterator[str]:
    """Names of the variables that a file sets: those of group_vars, and those of hosts and groups."""
    content = yaml.safe_load(path.read_text())
    if "group_vars" in path.parts:
        yield from content
        return
    for group in (content, *(content.get("children", {}) for content in content.values())):
        for members in group.values():
            yield from members.get("vars", {})
            for variables in members.get("hosts", {}).values():
                yield from variables or {}


@pytest.mark.parametrize("path", SAMPLE, ids=lambda path: path.name)
def test_the_sample_names_variables_that_there_are(path: Path) -> None:
    named = {*NAMED.findall(path.read_text()), *set_in(path)}
    assert [name for name in named if not name.startswith("ansible_")] or path.name == "hosts.yml"
    assert sorted(name for name in named - known() if not name.startswith("ansible_")) == []
