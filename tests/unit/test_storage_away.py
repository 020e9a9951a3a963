"""The roles nfs and database on a node whose disk is not mounted: they refuse to begin anew."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def run(tmp_path: Path, role: str, tasks: str, **variables: object) -> subprocess.CompletedProcess[str]:
    """Run some tasks of a role on this machine."""
    play = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "tasks": [
            {"ansible.builtin.import_role": {"name": f"campus.jupyterhub.{role}", "tasks_from": tasks}},
        ],
    }
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    (tmp_path / "variables.yml").write_text(yaml.safe_dump(variables))
    program = Path(sys.executable).with_name("ansible-playbook")
    extra = f"@{tmp_path / 'variables.yml'}"
    command = [program, "-i", "localhost,", tmp_path / "play.yml", "-e", extra]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


# What the role makes belongs to root.
@pytest.mark.root
def test_an_empty_mount_point_is_no_new_storage(tmp_path: Path) -> None:
    """Else the same numbers went to other users, and every home would be empty."""
    data = tmp_path / "data"
    variables = {
        "nfs_data_dir": str(data),
        "nfs_config_dir": str(tmp_path / "etc"),
        "nfs_clients": ["192.0.2.1"],
    }
    first = run(tmp_path, "nfs", "configure", **variables)
    assert first.returncode == 0, first.stdout
    (data / "accounts/passwd").write_text("alice:x:100000:100000::/homes/alice:/bin/bash\n")
    second = run(tmp_path, "nfs", "configure", **variables)
    assert second.returncode == 0, second.stdout
    assert "changed=0" in second.stdout
    slash = run(tmp_path, "nfs", "configure", **variables | {"nfs_data_dir": f"{data}/"})
    assert slash.returncode == 0, slash.stdout

    shutil.move(data, tmp_path / "disk")
    data.mkdir()
    away = run(tmp_path, "nfs", "configure", **variables)
    assert away.returncode == 2
    assert "homes/.campus-storage, which earlier runs made: is its disk mounted?" in away.stdout
    assert list(data.iterdir()) == []

    # with only the homes on a disk of their own
    shutil.move(tmp_path / "disk", data / "whole")
    shutil.copytree(data / "whole", data, dirs_exist_ok=True)
    (data / "homes/.campus-storage").unlink()
    away = run(tmp_path, "nfs", "configure", **variables)
    assert away.returncode == 2
    assert not (data / "homes/.campus-storage").exists()

    (tmp_path / "etc/ganesha.conf").unlink()
    elsewhere = run(tmp_path, "nfs", "configure", **variables, nfs_accounts_given=True)
    assert elsewhere.returncode == 2
    assert "and the cluster has accounts already: bring the storage there first" in elsewhere.stdout
    assert not (data / "homes/.campus-storage").exists()

    anew = run(tmp_path, "nfs", "configure", **variables)
    assert anew.returncode == 0, anew.stdout


@pytest.mark.root
def test_an_empty_mount_point_is_no_new_database(tmp_path: Path) -> None:
    """The note of an earlier run is there, and the data is not."""
    data = tmp_path / "data"
    variables = {
        "database_dir": str(data),
        "database_config_dir": str(tmp_path / "etc"),
        "database_host": "localhost",
    }
    first = run(tmp_path, "database", "install", **variables)
    assert first.returncode == 0, first.stdout
    assert data.is_dir()

    data.rmdir()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/database").touch()
    away = run(tmp_path, "database", "install", **variables)
    assert away.returncode == 2
    assert "the data of the service database, which earlier runs made: is its disk mounted?" in away.stdout
    assert not data.exists()

    (data / "17").mkdir(parents=True)
    (data / "17/PG_VERSION").write_text("17\n")
    back = run(tmp_path, "database", "install", **variables)
    assert back.returncode == 0, back.stdout
