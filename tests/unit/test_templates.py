"""Every role's templates, rendered for every inventory, are what the program that reads them wants."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.template import trust_as_template
from inventory import ROOT, Inventory

INVENTORIES = sorted(
    str(path.parent.relative_to(ROOT))
    for pattern in ("inventories/*/hosts.yml", "tests/inventories/*/hosts.yml")
    for path in ROOT.glob(pattern)
)
TEMPLATES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("roles/*/templates/**/*.j2"))
# What belongs to one inventory and must not turn up in another's files.
OWN_WORDS = {
    "inventories/lab": ["198.51.100.", "dc=campus,dc=example"],
    "tests/inventories/test": ["198.18.51.", "dc=campus,dc=example"],
    "tests/inventories/two_nodes": ["198.18.52.", "dc=school,dc=test", "alpha", "beta"],
    "inventories/production": ["192.0.2.11", "jupyterhub.example.org"],
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

    def render(self, template: Path, host: str) -> str:
        """The file as the host gets it."""
        role = template.relative_to(ROOT).parts[1]
        variables: dict[str, Any] = {}
        for source in (
            ROOT / "roles" / role / "defaults/main.yml",
            ROOT / "playbooks/vars/wiring.yml",
            ROOT / "roles" / role / "vars/main.yml",
        ):
            if source.exists():
                variables |= self._inventory.load(source)
        references = {key: f"registry.test:5000/campus/{key}@sha256:{'0' * 64}" for key in IMAGES}
        variables |= {**FOUND_OUT, "images_refs": references, "role_path": str(ROOT / "roles" / role)}
        templar = self._inventory.templar(host, **variables)
        overrides = {"trim_blocks": True, "lstrip_blocks": False}
        templar.environment.loader.searchpath = [str(template.parent)]
        text = trust_as_template(template.read_text())
        with templar.set_temporary_context(**overrides):
            return str(templar.template(text, convert_data=False, preserve_trailing_newlines=True))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins for the generated secrets, so that a missing one is an error here."""
    directory = tmp_path_factory.mktemp("secrets")
    for name in ("accounts_token", "crypt_key", "database_password", "proxy_token"):
        (directory / name).write_text(f"{name}-content")
    for name in ("ca", "edge", "registry", "registry-client", "directory"):
        for kind in ("crt", "key"):
            (directory / f"{name}.{kind}").write_text(
                f"-----BEGIN {name}-----\n{kind}\n-----END {name}-----\n"
            )
    return directory


@pytest.fixture(scope="module", params=INVENTORIES)
def inventory(request: pytest.FixtureRequest) -> str:
    """Name of an inventory."""
    return request.param


@pytest.fixture(scope="module")
def renderer(inventory: str, certificates: Path) -> Renderer:
    """The inventory's renderer."""
    return Renderer(inventory, certificates)


def rendered(renderer: Renderer, template: str) -> Iterator[str]:
    """The file of the first and of the last host: a manager and, if there is one, a worker."""
    for host in sorted({renderer.hosts[0], renderer.hosts[-1]}):
        yield renderer.render(ROOT / template, host)


def test_there_is_something_to_render() -> None:
    assert len(INVENTORIES) >= 5
    assert TEMPLATES


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_result_is_well_formed(renderer: Renderer, template: str) -> None:
    for text in rendered(renderer, template):
        assert text.strip()
        assert "{{" not in text
        assert "{%" not in text
        kind = Path(template.removesuffix(".j2")).suffix
        if kind == ".py":
            compile(text, template, "exec")
        elif kind == ".json":
            json.loads(text)
        elif kind in (".yml", ".yaml"):
            assert yaml.safe_load(text)
        elif kind == ".nft":
            assert text.count("{") == text.count("}")


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_result_knows_no_other_inventory(renderer: Renderer, inventory: str, template: str) -> None:
    own = OWN_WORDS.get(inventory, [])
    foreign = {word for words in OWN_WORDS.values() for word in words} - set(own)
    for text in rendered(renderer, template):
        assert [word for word in foreign if word in text] == []


@pytest.mark.parametrize("template", TEMPLATES)
def test_no_generated_secret_is_in_it(renderer: Renderer, template: str) -> None:
    """Secrets reach containers as Docker secrets; files and definitions are world-readable in Docker."""
    for text in rendered(renderer, template):
        assert "-content" not in text
        assert "-----BEGIN edge-----\nkey" not in text
