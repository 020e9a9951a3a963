"""The administrator's page, with and without a server that answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster import Cluster


def page(cluster: Cluster, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The lines of the playbook's output, with single spaces; it changes nothing."""
    recap = cluster.playbook("status.yml", *arguments, timeout=300)
    assert sum(host["changed"] for host in recap.values()) == 0
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.smoke
def test_the_page_has_what_there_is(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    lines = page(cluster, capsys)
    for host in cluster.node_names():
        (line,) = [line for line in lines if line.startswith(f"{host} ") and " ready " in line]
        assert " active " in line
        assert line.endswith(" yes")
    for service in cluster.services():
        name = service["Spec"]["Name"]
        if "org.jupyterhub.user" not in service["Spec"].get("Labels", {}):
            assert any(line.startswith(f"{name} ") for line in lines), name
    assert any(line.startswith(("hub:", "hub@")) for line in lines)
    assert any(line.startswith(("notebook:", "notebook@")) for line in lines)
    assert any(line.startswith(f"{cluster.storage_dir}: ") for line in lines)
    assert any(line.startswith("ca 20") for line in lines)
    assert any(line.startswith("Hub: https://") and " answers in " in line for line in lines)


def test_a_server_that_does_not_answer_is_told(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """An address of the test network that nobody has."""
    address = f"{cluster.storage.address.rpartition('.')[0]}.250"
    more = tmp_path / "hosts.yml"
    more.write_text(f"workers:\n  hosts:\n    absent:\n      ansible_host: {address}\n")
    lines = page(cluster, capsys, "-i", str(more))
    assert any(line.startswith("absent does not answer, so nothing is known of its images") for line in lines)
    assert any(line.startswith("Hub: https://") and " answers in " in line for line in lines)
