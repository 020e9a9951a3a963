"""The roles' templates and stacks, rendered for an inventory without a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from ansible.template import Templar, trust_as_template
from inventory import ROOT, Inventory

TEMPLATES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("roles/*/templates/**/*.j2"))
# Tasks that deploy a stack: what they pass to the role `stack`, by role and name of the stack.
STACKS = {
    f"{path.relative_to(ROOT).parts[1]}/{task['vars']['stack_name']}": task["vars"]
    for path in sorted(ROOT.glob("roles/*/tasks/*.yml"))
    for task in yaml.safe_load(path.read_text()) or []
    if (task.get("ansible.builtin.include_role") or {}).get("name") == "campus.jupyterhub.stack"
}
# What tasks find out on the servers.
FOUND_OUT: dict[str, Any] = {
    "ansible_managed": "Ansible managed",
    "ansible_facts": {
        "distribution": "Debian",
        "distribution_major_version": "13",
        "distribution_release": "trixie",
        "architecture": "x86_64",
        "default_ipv4": {"interface": "eth0", "address": "192.0.2.250"},
        "default_ipv6": {},
    },
}
IMAGES = (
    *("base", "registry", "nfs", "accounts", "directory", "database", "edge", "docker-api", "proxy", "hub"),
    *("notebook", "notebook-teacher"),
)


class Renderer:
    """Renders one role's templates for one inventory, with what the role sees in a deployment."""

    def __init__(self, inventory: str, certificates: Path) -> None:
        """Read the inventory; the secrets are those of a directory made for the test."""
        self._inventory = Inventory(ROOT / inventory, extra={"certificates_dir": str(certificates)})
        self.hosts = self._inventory.groups["swarm"]

    def templar(self, roles: list[str], host: str, **more: Any) -> Templar:
        """An evaluator with what the last role sees when the others before it have included it."""
        variables: dict[str, Any] = {}
        for source in (
            *(ROOT / "roles" / role / "defaults/main.yml" for role in roles),
            ROOT / "playbooks/vars/wiring.yml",
            *(ROOT / "roles" / role / "vars/main.yml" for role in roles),
        ):
            if source.exists():
                variables |= self._inventory.load(source)
        images = {*IMAGES, *(image["name"] for image in self._inventory.value(host, "images_extra", []))}
        references = {key: f"registry.test:5000/campus/{key}@sha256:{'0' * 64}" for key in images}
        variables |= {
            **FOUND_OUT,
            "images_refs": references,
            "images_registry_image": "registry.test:5000/campus/registry:0",
            "role_path": str(ROOT / "roles" / roles[-1]),
            "ansible_search_path": [str(ROOT / "roles" / role) for role in roles],
        }
        return self._inventory.templar(host, **{**variables, **more})

    def render(self, template: Path, host: str) -> str:
        """The file as the host gets it."""
        templar = self.templar([template.relative_to(ROOT).parts[1]], host)
        overrides = {"trim_blocks": True, "lstrip_blocks": False}
        templar.environment.loader.searchpath = [str(template.parent)]
        text = trust_as_template(template.read_text())
        with templar.set_temporary_context(**overrides):
            return str(templar.template(text, convert_data=False, preserve_trailing_newlines=True))

    def stack(self, stack: str, host: str) -> str:
        """The compose file as the manager gets it."""
        volumes = self.templar(["volumes"], host).template(trust_as_template("{{ __volumes_all }}"))
        passed = {"volumes_stack": volumes, **trusted(STACKS[stack])}
        templar = self.templar([stack.partition("/")[0], "stack"], host, **passed)
        return str(templar.template(trust_as_template("{{ __stack_content }}")))

    def everything(self) -> Iterator[tuple[str, str]]:
        """Each file for each kind of host, with a name."""
        for host in sorted({self.hosts[0], self.hosts[-1]}):
            for template in TEMPLATES:
                yield f"{template} on {host}", self.render(ROOT / template, host)
            for stack in STACKS:
                yield f"{stack} on {host}", self.stack(stack, host)


def trusted(value: Any) -> Any:
    """Let the expressions within a value be evaluated."""
    if isinstance(value, dict):
        return {key: trusted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [trusted(item) for item in value]
    return trust_as_template(value) if isinstance(value, str) else value


def fill(directory: Path) -> Path:
    """Make stand-ins for the generated secrets, so that a missing one is an error here."""
    for name in ("accounts_token", "crypt_key", "database_password", "gradebook_key", "proxy_token"):
        (directory / name).write_text(f"{name}-content")
    for name in ("ca", "edge", "registry", "registry-client", "directory"):
        for kind in ("crt", "key"):
            (directory / f"{name}.{kind}").write_text(
                f"-----BEGIN {name}-----\n{kind}\n-----END {name}-----\n"
            )
    return directory
