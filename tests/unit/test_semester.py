"""The end of a course: nothing of it is lost on the way, wherever a run is interrupted."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest


def load(path: str) -> Any:
    """Load a plugin."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, Path(__file__).parents[2] / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


semester = load("plugins/filter/semester.py")
course_close = load("plugins/modules/course_close.py")


class Docker:
    """Stands in for the commands of Docker: one database with a role."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take the place of course_close.run."""
        self.there, self.login, self.content, self.running = True, True, "grades", True
        self.fails = ""
        self.real = course_close.run
        monkeypatch.setattr(course_close, "run", self.run)

    def run(self, command: list[str], **options: Any) -> str:
        """Do what the command would."""
        if command[0] != "docker":
            return self.real(command, **options)
        if "ps" in command:
            return "c0ffee\n" * self.running
        program = next(name for name in ("psql", "pg_dump", "pg_restore") if name in command)
        if self.fails == program:
            raise course_close.CloseError(f"{program}: no.")
        if program == "pg_dump":
            assert not self.login
            os.write(options["stdout"].fileno(), self.content.encode())
        sql = options.get("input", "")
        if "NOLOGIN" in sql:
            self.login = False
        if "DROP" in sql:
            self.there = self.login = None
        size = "1000" if self.there else ""
        login = "" if self.login is None else "t" if self.login else "f"
        return f"{size}|{login}\n" if "pg_database_size" in sql else ""


@pytest.fixture
def docker(monkeypatch: pytest.MonkeyPatch) -> Docker:
    """A gradebook."""
    return Docker(monkeypatch)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A storage with the course algo1."""
    for place in ("courses", "exchange"):
        (tmp_path / place / "algo1/deeper").mkdir(parents=True)
        (tmp_path / place / "algo1/deeper/file").write_text(place)
    return tmp_path


def work(data: Path, *, drop: bool = False, check: bool = False) -> dict[str, Any]:
    """Do what the module would."""
    return course_close.work("algo1", str(data), "gradebook_gradebook", drop, check)


def files(data: Path) -> dict[str, str]:
    """All files by their path."""
    return {str(path.relative_to(data)): path.read_text() for path in data.rglob("*") if path.is_file()}


CLOSED = {
    "closed/algo1/courses/deeper/file": "courses",
    "closed/algo1/exchange/deeper/file": "exchange",
    "closed/algo1/gradebook.dump": "grades",
}


def test_everything_is_in_one_place_that_root_alone_enters(data: Path, docker: Docker) -> None:
    before = files(data)
    found = work(data, check=True)
    assert (found["changed"], found["gradebook"]) == (True, {"bytes": 1000, "state": "open"})
    assert [(one["files"], Path(one["goes"]).name) for one in found["directories"]] == [
        (1, "courses"),
        (1, "exchange"),
    ]
    assert (files(data), docker.login) == (before, True)
    done = work(data)
    assert (done["changed"], done["gradebook"]["state"], files(data)) == (True, "dumped", CLOSED)
    assert [one["goes"] for one in done["directories"]] == ["", ""]
    assert {(data / path).stat().st_mode & 0o777 for path in ("closed", "closed/algo1")} == {0o700}
    assert (data / "closed/algo1/gradebook.dump").stat().st_mode & 0o777 == 0o600
    assert work(data)["changed"] is False


@pytest.mark.parametrize("program", ["pg_dump", "pg_restore"])
def test_no_dump_has_its_name_before_it_was_read(data: Path, docker: Docker, program: str) -> None:
    docker.fails = program
    with pytest.raises(course_close.CloseError, match=program):
        work(data)
    assert "closed/algo1/gradebook.dump" not in files(data)
    docker.fails = ""
    assert work(data, drop=True, check=True)["gradebook"]["state"] == "open"
    work(data)
    assert files(data) == CLOSED


def test_an_interrupted_move_goes_on(data: Path, docker: Docker) -> None:
    (data / "closed/algo1").mkdir(parents=True)
    (data / "courses/algo1").rename(data / "closed/algo1/courses")
    work(data)
    assert files(data) == CLOSED


def test_a_gradebook_goes_after_it_was_written(data: Path, docker: Docker) -> None:
    work(data)
    assert work(data, drop=True)["gradebook"]["state"] == "dropped"
    assert (docker.there, files(data)) == (None, CLOSED)
    assert work(data, drop=True)["changed"] is False


def test_a_course_that_was_open_once_more_is_written_again(data: Path, docker: Docker) -> None:
    work(data)
    docker.login, docker.content = True, "better grades"
    assert work(data)["changed"] is True
    kept = sorted(text for path, text in files(data).items() if path.endswith(".dump"))
    assert kept == ["better grades", "grades"]


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_course_that_was_brought_back_and_taken_out_is_written_again(
    data: Path, docker: Docker, interrupted: bool
) -> None:
    """Its role has no login by then: the service took it when the course left the table."""
    work(data)
    for place in ("courses", "exchange"):
        (data / "closed/algo1" / place).rename(data / place / "algo1")
    docker.content = "better grades"
    assert work(data, check=True)["gradebook"]["state"] == "open"
    if interrupted:
        docker.fails = "pg_dump"
        with pytest.raises(course_close.CloseError, match="pg_dump"):
            work(data, drop=True)
        docker.fails = ""
    work(data, drop=True)
    assert files(data)["closed/algo1/gradebook.dump"] == "better grades"
    kept = sorted(text for path, text in files(data).items() if path.endswith(".dump"))
    assert (kept, docker.there) == (["better grades", "grades"], None)


def test_what_is_in_the_way_is_told_and_nothing_is_changed(data: Path, docker: Docker) -> None:
    (data / "closed/algo1/courses").mkdir(parents=True)
    docker.running = False
    before = files(data)
    problems = work(data, check=True)["problems"]
    assert "was made again after the course was closed" in problems[0]
    assert "service does not run" in problems[1]
    with pytest.raises(course_close.CloseError, match="made again"):
        work(data)
    assert files(data) == before
    (data / "closed/algo1/courses").rmdir()
    (data / "courses/algo1").rename(data / "elsewhere")
    (data / "courses/algo1").symlink_to(data / "elsewhere")
    assert "is no directory" in work(data, check=True)["problems"][0]
    with pytest.raises(course_close.CloseError, match="is no name"):
        course_close.work("../homes", str(data), "gradebook_gradebook", False, True)


def test_a_course_without_nbgrader(data: Path, docker: Docker) -> None:
    docker.running = False
    (data / "exchange/algo1/deeper/file").unlink()
    (data / "exchange/algo1/deeper").rmdir()
    (data / "exchange/algo1").rmdir()
    assert work(data)["gradebook"]["state"] == "absent"
    assert files(data) == {"closed/algo1/courses/deeper/file": "courses"}


# --- what the playbook says ---

FOUND = {
    "directories": [
        {"path": "/d/courses/algo1", "goes": "/d/closed/algo1/courses", "files": 3, "bytes": 2048}
    ],
    "gradebook": {"bytes": 1 << 20, "state": "open"},
    "problems": [],
}


def archive(name: str = "", free: int = 1 << 40) -> dict[str, Any]:
    """What home_archive says."""
    return {"homes": [{"archive": name, "state": "absent"}], "needed": 0, "free": free}


def problems(
    delete: str = "", found: dict = FOUND, archived: dict | None = None, **courses: list
) -> list[str]:
    """Why algo1 cannot be closed."""
    table, served = ([{"name": name} for name in courses.get(key, [])] for key in ("table", "served"))
    return semester.semester_problems("algo1", delete, found, archived or archive(), 1024, table, served)


def test_what_the_playbook_refuses():
    assert problems() == problems("algo1") == problems(table=["db1"], served=["db1"]) == []
    assert "take it out and run `make run`" in problems(table=["algo1"], served=["algo1"])[0]
    assert "the cluster still has it: run `make run`" in problems(served=["algo1"])[0]
    assert problems("db1") == ["semester_delete names db1, but the course is algo1."]
    nothing = {**FOUND, "directories": []}
    assert "There is no course algo1" in problems(found=nothing)[0]
    assert problems(found=nothing, archived=archive("algo1-20261124T204811Z.tar.gz")) == []
    assert "1024 MiB have to stay free" in problems(archived=archive(free=1 << 30))[0]


def test_what_the_playbook_says():
    services = [{"Spec": {"Labels": {"org.jupyterhub.user": name}}} for name in ("gina", "anna")]
    assert semester.semester_plan("algo1", "", FOUND, services, "", "/a") == [
        "/d/courses/algo1: 3 files, 2.0 KiB, goes to /d/closed/algo1/courses",
        "gradebook: database algo1, 1.0 MiB, goes to a file",
        "servers that run: 2, of anna, gina",
        "last archive: none",
    ]
    home = {"state": "deleted", "archive": "algo1-20261124T204811Z.tar.gz"}
    told = semester.semester_report("algo1", home, "/d/closed/algo1", "/a")
    assert told[0] == "algo1 is closed, and archived in /a/algo1-20261124T204811Z.tar.gz"
    assert told[1] == "/d/closed/algo1 and the gradebook were removed"
