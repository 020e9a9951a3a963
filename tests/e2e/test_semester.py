"""The end of a course: closed, archived and removed, with its gradebook."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cluster import Cluster, wait_for
from hub import HubUser

pytestmark = [pytest.mark.two_nodes, pytest.mark.disruptive]

# A course of this test's own: it is in no inventory, and all that there is of it is made here.
COURSE = "semester-test"
LOGIN = "SELECT rolcanlogin FROM pg_roles WHERE rolname = '{}';"
# One of the inventory's, with students and graders.
REAL = "db1"
GRADEBOOK = (
    "import os, psycopg2; book = psycopg2.connect(os.environ['CAMPUS_GRADEBOOK'].replace('+psycopg2', ''))"
)


def run(cluster: Cluster, *arguments: str, **asked: Any) -> int:
    """Run the playbook, and return how many tasks changed something."""
    asked = {"semester_course": COURSE, **asked}
    recap = cluster.playbook("semester.yml", "--extra-vars", json.dumps(asked), *arguments)
    return sum(host["changed"] for host in recap.values())


def archive_dir(cluster: Cluster) -> str:
    """The directory of the courses' archives."""
    parent = cluster.value("nfs_archive_dir", f"{posixpath.dirname(cluster.storage_dir)}/archive")
    return f"{parent}/courses"


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
    places = [f"{cluster.storage_dir}/{place}/{COURSE}" for place in ("courses", "exchange")]
    for place in places:
        cluster.storage.run("mkdir", place)
        cluster.storage.run("tee", f"{place}/file", stdin="word")
        cluster.storage.run("chown", "100000:100000", f"{place}/file")
    sql(cluster, f'CREATE ROLE "{COURSE}" LOGIN;\nCREATE DATABASE "{COURSE}" OWNER "{COURSE}";')
    sql(cluster, "CREATE TABLE grade AS SELECT 42 AS score;", COURSE)
    yield archive_dir(cluster)
    sql(cluster, f'DROP DATABASE IF EXISTS "{COURSE}" WITH (FORCE);\nDROP ROLE IF EXISTS "{COURSE}";')
    cluster.storage.run("rm", "-rf", *places, f"{cluster.storage_dir}/closed/{COURSE}")
    cluster.storage.run("find", archive_dir(cluster), "-name", f"{COURSE}-*", "-delete")


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
    assert sql(cluster, LOGIN.format(COURSE)) == "t"

    assert run(cluster) > 0
    assert sql(cluster, LOGIN.format(COURSE)) == "f"
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
    assert sql(cluster, LOGIN.format(COURSE)) == ""
    assert run(cluster, semester_delete=COURSE) == 0


def bring_back(cluster: Cluster) -> None:
    """Do what docs/courses.md says, where it is to be done."""
    for place in ("courses", "exchange"):
        closed, there = (
            f"{cluster.storage_dir}/{path}" for path in (f"closed/{REAL}/{place}", f"{place}/{REAL}")
        )
        cluster.storage.run(
            *("sh", "-c", '[ ! -d "$1" ] || mv --no-target-directory --no-clobber "$1" "$2"'),
            *("sh", closed, there),
        )
    cluster.playbook("site.yml")


@pytest.fixture
def without(cluster: Cluster) -> Iterator[dict[str, Any]]:
    """The table without a course, which is there again at the end, and as it was."""
    yield {"courses": [course for course in cluster.value("courses") if course["name"] != REAL]}
    if sql(cluster, LOGIN.format(REAL)) == "f":
        bring_back(cluster)
    sql(cluster, "DROP TABLE IF EXISTS kept;", REAL)
    kept = f"{cluster.storage_dir}/courses/{REAL}/material/kept.txt"
    cluster.storage.run("rm", "-rf", f"{cluster.storage_dir}/closed/{REAL}", kept)
    cluster.storage.run("find", archive_dir(cluster), "-name", f"{REAL}-*", "-delete")


def test_a_course_of_the_table_ends_and_comes_back(
    cluster: Cluster, user: Callable[[str], HubUser], without: dict[str, Any]
) -> None:
    """Not as long as servers of it can start; those that run are ended; and nothing is lost."""
    emil, gus = user("emil"), user("gus")
    for member in (emil, gus):
        member.stop()
        member.spawn({"course": REAL})
    gus.run(f"{GRADEBOOK}; book.cursor().execute('CREATE TABLE kept AS SELECT 42 AS score'); book.commit()")
    gus.shell(f"echo word > ~/courses/{REAL}/material/kept.txt")

    with pytest.raises(AssertionError, match="but the cluster still has it"):
        run(cluster, semester_course=REAL, **without)
    cluster.playbook("site.yml", "--extra-vars", json.dumps(without))
    assert emil.server
    assert sql(cluster, LOGIN.format(REAL)) == "f"

    assert run(cluster, semester_course=REAL, **without) > 0
    for member in (emil, gus):
        assert cluster.notebook(member.name) is None
        wait_for("the hub's notice of it", lambda member=member: member.server is None, timeout=120)
    assert REAL not in cluster.storage.run("ls", f"{cluster.storage_dir}/courses").split()

    bring_back(cluster)
    emil.spawn({"course": REAL})
    assert emil.shell(f"cat ~/courses/{REAL}/material/kept.txt").strip() == "word"
    gus.spawn({"course": REAL})
    code = "cursor = book.cursor(); cursor.execute('SELECT score FROM kept'); print(cursor.fetchone())"
    assert gus.run(f"{GRADEBOOK}; {code}").strip() == "(42,)"
    for member in (emil, gus):
        member.stop()
