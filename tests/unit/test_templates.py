"""Every role's templates and stacks, rendered for every inventory, are what their readers want."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from authenticator import CampusLDAPAuthenticator
from courses import CourseSpawner
from inventory import ROOT
from jupyterhub.app import JupyterHub
from jupyterhub.auth import Authenticator
from jupyterhub.crypto import CryptKeeper
from jupyterhub.proxy import ConfigurableHTTPProxy
from jupyterhub.spawner import Spawner
from ldapauthenticator import LDAPAuthenticator
from rendering import STACKS, TEMPLATES, Renderer, fill
from spawner import NfsSwarmSpawner
from traitlets.config import Application, Config

INVENTORIES = sorted(
    str(path.parent.relative_to(ROOT))
    for pattern in ("inventories/*/hosts.yml", "tests/inventories/*/hosts.yml")
    for path in ROOT.glob(pattern)
)
# What belongs to one inventory and must not turn up in another's files.
OWN_WORDS = {
    "inventories/lab": ["198.51.100.", "dc=campus,dc=example"],
    "tests/inventories/test": ["198.18.51.", "dc=campus,dc=example"],
    "tests/inventories/two_nodes": ["198.18.52.", "dc=school,dc=test", "alpha", "beta"],
    "inventories/production": ["192.0.2.11", "jupyterhub.example.org"],
}


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


def test_notebooks_reach_no_nodes_ssh_at_any_address(certificates: Path) -> None:
    """Those between the nodes and Ansible's own, and each SSH server's port."""
    renderer = Renderer("tests/inventories/variants", certificates)
    for host in (renderer.hosts[0], renderer.hosts[-1]):
        text = renderer.render(ROOT / "roles/firewall/templates/campus.nft.j2", host)
        closed = re.search(r"set closed_ip {.*?elements = { (.*?) }", text, re.DOTALL)[1].split(", ")
        assert {"10.1.0.1", "10.1.0.4", "10.1.0.5", "192.0.2.1", "192.0.2.5"} <= set(closed)
        assert "ip daddr @closed_ip tcp dport { 22, 2222, 5000 } counter drop" in text
        trusted = re.search(r"set nodes_ip {.*?elements = { (.*?) }", text, re.DOTALL)[1].split(", ")
        assert "192.0.2.1" not in trusted


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
    with pytest.MonkeyPatch.context() as patch:
        # The file puts a directory of the hub's image in front.
        patch.setattr(sys, "path", list(sys.path))
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
