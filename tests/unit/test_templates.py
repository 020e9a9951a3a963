"""Every role's templates and stacks, rendered for every inventory, are what their readers want."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.template import Templar, trust_as_template
from authenticator import CampusLDAPAuthenticator
from courses import CourseSpawner
from inventory import ROOT, Inventory
from jupyterhub.app import JupyterHub
from jupyterhub.auth import Authenticator
from jupyterhub.crypto import CryptKeeper
from jupyterhub.proxy import ConfigurableHTTPProxy
from jupyterhub.spawner import Spawner
from ldapauthenticator import LDAPAuthenticator
from spawner import NfsSwarmSpawner
from traitlets.config import Application, Config

INVENTORIES = sorted(
    str(path.parent.relative_to(ROOT))
    for pattern in ("inventories/*/hosts.yml", "tests/inventories/*/hosts.yml")
    for path in ROOT.glob(pattern)
)
TEMPLATES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("roles/*/templates/**/*.j2"))
# Tasks that deploy a stack: what they pass to the role `stack`, by role and name of the stack.
STACKS = {
    f"{path.relative_to(ROOT).parts[1]}/{task['vars']['stack_name']}": task["vars"]
    for path in sorted(ROOT.glob("roles/*/tasks/*.yml"))
    for task in yaml.safe_load(path.read_text()) or []
    if (task.get("ansible.builtin.include_role") or {}).get("name") == "campus.jupyterhub.stack"
}
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


def digests(inventory: str, certificates: str) -> dict[str, str]:
    """A digest of each file of an inventory; called in other interpreters."""
    renderer = Renderer(inventory, Path(certificates))
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in renderer.everything()}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the stand-ins."""
    return fill(tmp_path_factory.mktemp("secrets"))


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
    assert {stack.partition("/")[0] for stack in STACKS} == {"database", "directory", "edge", "hub", "nfs"}


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


@pytest.mark.parametrize("stack", STACKS)
def test_a_stack_is_complete(renderer: Renderer, inventory: str, stack: str) -> None:
    """Whatever a service names is declared, nothing is left to evaluate, and no secret is in it."""
    foreign = {word for words in OWN_WORDS.values() for word in words} - {*OWN_WORDS.get(inventory, [])}
    for host in sorted({renderer.hosts[0], renderer.hosts[-1]}):
        text = renderer.stack(stack, host)
        assert "{{" not in text
        assert "{%" not in text
        assert "-content" not in text
        assert [word for word in foreign if word in text] == []
        compose = yaml.safe_load(text)
        assert compose["services"]
        for service in compose["services"].values():
            assert "@sha256:" in service["image"]
            assert {*service["networks"]} <= {*compose["networks"]}
            for kind in ("secrets", "configs"):
                assert {item["source"] for item in service.get(kind, [])} <= {*compose[kind]}
            for volume in service.get("volumes", []):
                source = volume.split(":")[0] if isinstance(volume, str) else volume.get("source", "/")
                assert source.startswith("/") or source in compose["volumes"]


def test_every_mount_names_another_port_of_the_storage(certificates: Path) -> None:
    """The hub's data and the notebooks' homes."""
    renderer = Renderer("tests/inventories/variants", certificates)
    host = renderer.hosts[0]
    assert "port=20490," in renderer.stack("hub/jupyterhub", host)
    config = renderer.render(ROOT / "roles/hub/templates/jupyterhub_config.py.j2", host)
    assert "c.NfsSwarmSpawner.nfs_port = 20490" in config


def test_an_inventory_gives_the_same_files_in_every_run(certificates: Path) -> None:
    """Sets have another order in each process: a file made of one would restart services for nothing."""
    code = (
        "import json, sys, test_templates;"
        "json.dump(test_templates.digests('tests/inventories/variants', sys.argv[1]), sys.stdout)"
    )
    paths = os.pathsep.join([str(ROOT / "tests/unit"), str(ROOT / "tests/support"), str(ROOT / "files")])
    runs = [
        subprocess.run(
            [sys.executable, "-c", code, str(certificates)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        for seed in ("1", "2")
    ]
    assert [run.stderr for run in runs if run.returncode] == []
    first, second = (json.loads(run.stdout) for run in runs)
    assert first
    assert [name for name in first if first[name] != second[name]] == []


HUB_CLASSES = {
    one.__name__: one
    for one in (
        *(
            Application,
            Authenticator,
            CampusLDAPAuthenticator,
            ConfigurableHTTPProxy,
            CourseSpawner,
            CryptKeeper,
        ),
        *(JupyterHub, LDAPAuthenticator, NfsSwarmSpawner, Spawner),
    )
}


@pytest.fixture(scope="module")
def config(renderer: Renderer, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """What the hub's file sets: a setting that no class has would be ignored by JupyterHub."""
    secrets = fill(tmp_path_factory.mktemp("run-secrets"))
    (secrets / "crypt_key").write_text("00" * 32)
    (secrets / "ldap_search_password").write_text("secret")
    text = renderer.render(ROOT / "roles/hub/templates/jupyterhub_config.py.j2", renderer.hosts[0])
    config = Config()
    exec(text.replace("/run/secrets", str(secrets)), {"get_config": lambda: config})  # noqa: S102 - our own
    return config


def test_every_setting_of_the_hub_is_one(config: Config) -> None:
    """Of a class that the hub has, under a name that the class has."""
    assert set(config) <= set(HUB_CLASSES)
    unknown = [
        f"{name}.{trait}"
        for name, section in config.items()
        for trait in section
        if trait not in HUB_CLASSES[name].class_traits(config=True)
    ]
    assert unknown == []


def test_the_spawner_takes_its_settings(config: Config) -> None:
    """Each value is of its trait's type, and the rules between them hold."""
    spawner = CourseSpawner(config=config)
    for section in ("NfsSwarmSpawner", "CourseSpawner"):
        for trait, value in config[section].items():
            assert getattr(spawner, trait) == value


def test_the_authenticator_takes_its_settings(config: Config) -> None:
    authenticator = CampusLDAPAuthenticator(config=config)
    for section in ("LDAPAuthenticator", "CampusLDAPAuthenticator"):
        for trait, value in config[section].items():
            assert getattr(authenticator, trait) == value or trait == "tls_strategy"
