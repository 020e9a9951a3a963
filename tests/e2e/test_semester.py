"""The end of a course: closed, archived and removed, with its gradebook."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from typing import Any

import pytest
from cluster import Cluster

pytestmark = [pytest.mark.two_nodes, pytest.mark.disruptive]

# A course of this test's own: it is in no inventory, and all that there is of it is made here.
COURSE = "semester-test"
LOGIN = "SELECT rolcanlogin FROM pg_roles WHERE rolname = 'semester-test';"


def run(cluster: Cluster, *arguments: str, **asked: Any) -> int:
    """Run the playbook, and return how many tasks changed something."""
    asked = {"semester_course": COURSE, **asked}
    recap = cluster.playbook("semester.yml", "--extra-vars", json.dumps(asked), *arguments)
    return sum(host["changed"] for host in recap.values())


def sql(cluster: Cluster, statement: str, database: str = "postgres") -> str:
    """Ask the gradebooks' PostgreSQL."""
    container = cluster.storage.container(cluster.service("gradebook"))
    psql = (
        "psql",
        "--no-psqlrc",
        "-tAq",
        "--host=/run/postgresql",
        "--username=postgres",
        f"--dbname={database}",
    )
    return cluster.storage.run("docker", "exec", "--interactive", container, *psql, stdin=statement).strip()


@pytest.fixture
def archives(cluster: Cluster) -> Iterator[str]:
    """Make the course, and give the directory of the archives; nothing of it stays."""
    parent = cluster.value("nfs_archive_dir", f"{posixpath.dirname(cluster.storage_dir)}/archive")
    places = [f"{cluster.storage_dir}/{place}/{COURSE}" for place in ("courses", "exchange")]
    for place in places:
        cluster.storage.run("mkdir", place)
        cluster.storage.run("tee", f"{place}/file", stdin="word")
        cluster.storage.run("chown", "100000:100000", f"{place}/file")
    sql(cluster, f'CREATE ROLE "{COURSE}" LOGIN;\nCREATE DATABASE "{COURSE}" OWNER "{COURSE}";')
    sql(cluster, "CREATE TABLE grade AS SELECT 42 AS score;", COURSE)
    yield f"{parent}/courses"
    sql(cluster, f'DROP DATABASE IF EXISTS "{COURSE}" WITH (FORCE);\nDROP ROLE IF EXISTS "{COURSE}";')
    cluster.storage.run("rm", "-rf", *places, f"{cluster.storage_dir}/closed/{COURSE}")
    cluster.storage.run("find", f"{parent}/courses", "-name", f"{COURSE}-*", "-delete")


def test_a_course_is_closed_archived_and_removed(
    cluster: Cluster, archives: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said by --check, done once; a course of the table is left alone."""
    with pytest.raises(AssertionError) as raised:
        run(cluster, semester_course=cluster.value("courses")[0]["name"])
    assert "still in the inventory's table of courses" in " ".join(str(raised.value).split())
    capsys.readouterr()

    assert run(cluster, "--check") > 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"/courses/{COURSE}: 1 files" in told
    assert "goes to a file" in told
    assert cluster.storage.run("cat", f"{cluster.storage_dir}/courses/{COURSE}/file") == "word"
    assert sql(cluster, LOGIN) == "t"

    assert run(cluster) > 0
    assert sql(cluster, LOGIN) == "f"
    closed = f"{cluster.storage_dir}/closed"
    assert cluster.storage.stat(closed) == {"uid": 0, "gid": 0, "mode": "700"}
    names = cluster.storage.run("ls", archives).split()
    (archive,) = [name for name in names if name.startswith(f"{COURSE}-") and name.endswith(".tar.gz")]
    cluster.storage.run("env", f"--chdir={archives}", "sha256sum", "--check", f"{archive}.sha256")
    listed = cluster.storage.run("tar", "--list", f"--file={archives}/{archive}").split()
    assert {f"{COURSE}/courses/file", f"{COURSE}/exchange/file", f"{COURSE}/gradebook.dump"} <= set(listed)
    assert run(cluster) == 0

    assert run(cluster, semester_delete=COURSE) > 0
    assert COURSE not in cluster.storage.run("ls", "--almost-all", closed)
    assert sql(cluster, LOGIN) == ""
    assert run(cluster, semester_delete=COURSE) == 0
