"""The collection builds, installs elsewhere and finds all of its own parts there."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest


def run(*command: str, cwd: Path, **environment: str) -> str:
    """Run one of Ansible's commands away from the repository's own settings."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
    done = subprocess.run(
        command, cwd=cwd, env={**clean, **environment}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tarball(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The collection as Galaxy would get it."""
    output = tmp_path_factory.mktemp("build")
    run("ansible-galaxy", "collection", "build", "--output-path", str(output), cwd=root)
    (built,) = output.glob("campus-jupyterhub-*.tar.gz")
    return built


@pytest.fixture(scope="module")
def elsewhere(tarball: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty directory with the collection installed."""
    directory = tmp_path_factory.mktemp("elsewhere")
    # The dependencies come with the `ansible` package; the test needs no network.
    install = ("ansible-galaxy", "collection", "install", "--no-deps", "-p", str(directory), str(tarball))
    run(*install, cwd=directory)
    return directory


def test_the_tarball_has_all_that_a_deployment_needs_and_nothing_private(tarball: Path) -> None:
    with tarfile.open(tarball) as archive:
        names = archive.getnames()
    for needed in (
        "playbooks/site.yml",
        "playbooks/vars/wiring.yml",
        "files/images/hub/Dockerfile",
        "README.md",
    ):
        assert needed in names
    private = ("secrets/", ".venv/", ".git/", "build/", "collections/", ".pyc")
    assert [name for name in names if any(part in f"{name}" for part in private)] == []


def test_what_a_deployment_or_a_tool_leaves_in_a_clone_stays_there(root: Path, tmp_path: Path) -> None:
    """The tests' inventories get secrets as well."""
    shutil.copytree(root / "meta", tmp_path / "clone/meta")
    for name in ("galaxy.yml", "README.md"):
        shutil.copy(root / name, tmp_path / "clone")
    left = (
        *("inventories/lab/secrets", "tests/inventories/test/secrets", "tests/deeper/in/it/secrets"),
        *(".venv", ".git", ".ansible", ".cache", ".hypothesis", ".pytest_cache", ".ruff_cache", "build"),
    )
    for directory in left:
        (tmp_path / "clone" / directory).mkdir(parents=True)
        (tmp_path / "clone" / directory / "ca.key").touch()
    run("ansible-galaxy", "collection", "build", "--output-path", str(tmp_path), cwd=tmp_path / "clone")
    (built,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        assert [name for name in archive.getnames() if name.endswith("ca.key")] == []


def test_it_is_listed(elsewhere: Path) -> None:
    listed = run("ansible-galaxy", "collection", "list", "-p", str(elsewhere), cwd=elsewhere)
    assert "campus.jupyterhub" in listed


def test_the_playbook_of_the_installed_collection_is_complete(root: Path, elsewhere: Path) -> None:
    """Syntax check loads every play, role and file that is imported, from the installed copy."""
    command = ("ansible-playbook", "campus.jupyterhub.site", "--syntax-check")
    inventory = root / "inventories/production"
    output = run(*command, "-i", str(inventory), cwd=elsewhere, ANSIBLE_COLLECTIONS_PATH=str(elsewhere))
    assert "campus.jupyterhub.site" in output or "site.yml" in output
