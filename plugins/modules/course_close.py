#!/usr/bin/python
"""Ansible module: puts all that there is of a course where no server reaches it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: course_close
short_description: Puts all that there is of a course into one directory that no server reaches
description:
  - Moves a course's directories in C(courses) and C(exchange) to C(closed/NAME) beside them, each in one
    step, so that nothing is copied and no owner changes.
  - Takes the login from the role of the course's gradebook, ends its sessions, and writes the gradebook to
    C(closed/NAME/gradebook.dump), in the custom format of C(pg_dump). A dump has its name only when
    C(pg_restore) has read all of it.
  - The gradebook of a course whose directories are closed, and whose role has no login, has not changed since
    its dump, so an interrupted run is simply run again.
  - With O(drop), the gradebook and its role are removed, if there is such a dump.
  - In check mode it tells what there is and what would become of it.
options:
  name:
    description: Name of the course, of its directories and of its gradebook.
    type: str
    required: true
  data_dir:
    description: Directory of C(courses), C(exchange) and C(closed).
    type: path
    required: true
  service:
    description: Service of the gradebooks. Its container is on this node.
    type: str
    default: gradebook_gradebook
  drop:
    description: Whether the gradebook is removed after it was written.
    type: bool
    default: false
requirements:
  - the docker command, GNU find
author:
  - Campus JupyterHub contributors
"""

EXAMPLES = r"""
- name: Close a course
  campus.jupyterhub.course_close:
    name: algo1
    data_dir: /srv/campus-jupyterhub/nfs
"""

RETURN = r"""
directories:
  description: >-
    What there is: C(path), where it C(goes), the number of C(files), and C(bytes) on the disk. What is closed
    already goes nowhere, which is an empty text.
  type: list
  elements: dict
  returned: success
gradebook:
  description: >-
    C(bytes) of the database, and its C(state), V(absent), V(open), V(dumped) or V(dropped); before the change
    in check mode, after it otherwise.
  type: dict
  returned: success
problems:
  description: Sentences for what is in the way; without check mode the module fails with them.
  type: list
  elements: str
  returned: success
"""

import contextlib  # noqa: E402 - Ansible reads the documentation above it
import os  # noqa: E402
import pathlib  # noqa: E402
import re  # noqa: E402
import subprocess  # noqa: E402
import time  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

# As plugins/filter/courses.py has it: a name that is safe in a path.
NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
RESERVED = {"postgres", "template0", "template1"}
PLACES = ("courses", "exchange")
DUMP = "gradebook.dump"
# The superuser, over the socket in the container: no password.
LOCAL = ("--host=/run/postgresql", "--username=postgres")


class CloseError(Exception):
    """The course stays as it is; the message is a sentence that says why."""


def run(command, **options):
    """Run a command, and return what it prints.

    Raises:
        CloseError: it fails.
    """
    # Without a standard input of its own it would read Ansible's.
    if "input" not in options:
        options.setdefault("stdin", subprocess.DEVNULL)
    options.setdefault("stdout", subprocess.PIPE)
    done = subprocess.run(
        command, stderr=subprocess.PIPE, text=True, errors="replace", check=False, **options
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise CloseError(f"{command[0]}: {said[0]}.")
    return done.stdout


def sync(path):
    """Bring a directory's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def measure(path):
    """Return the number of files in a directory, and the bytes that they take on the disk."""
    lines = run(["find", "-P", str(path), "-xdev", "-printf", "%y %b\n"]).splitlines()
    blocks = sum(int(line.split()[1]) for line in lines)
    return sum(line[0] != "d" for line in lines), blocks * 512


class Gradebook:
    """The database of a course, and the role of the same name that owns it."""

    def __init__(self, name, service):
        """Look at it.

        Raises:
            CloseError: PostgreSQL does not answer.
        """
        self.name = name
        label = f"label=com.docker.swarm.service.name={service}"
        found = run(["docker", "ps", "--quiet", "--filter", label]).split()
        self.container = found[0] if found else None
        self.size, self.login = None, None
        if self.container:
            size, login = self.sql(
                "SELECT (SELECT pg_database_size(datname) FROM pg_database WHERE datname = :'name'),"
                " (SELECT rolcanlogin FROM pg_roles WHERE rolname = :'name');"
            ).split("|")
            self.size = int(size) if size else None
            self.login = login == "t" if login else None

    def sql(self, *statements):
        """Run statements, in which `name` is a variable of psql, and return what they yield."""
        psql = (
            "psql",
            "--no-psqlrc",
            "--tuples-only",
            "--no-align",
            "--quiet",
            "--set=ON_ERROR_STOP=1",
            *LOCAL,
        )
        command = [
            "docker",
            "exec",
            "--interactive",
            self.container,
            *psql,
            f"--set=name={self.name}",
            "--dbname=postgres",
        ]
        return run(command, input="\n".join(statements)).strip()

    def shut(self):
        """Take the role's login and end its sessions: from here on nobody changes anything."""
        if self.login:
            self.sql('ALTER ROLE :"name" NOLOGIN;')
        self.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :'name';")

    def write(self, path):
        """Write it to a file, which has its name when all of it was read once.

        Raises:
            CloseError: it cannot be written or read.
        """
        part = path.with_name(f"{path.name}.part")
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            command = ["pg_dump", "--format=custom", *LOCAL, f"--dbname={self.name}"]
            run(["docker", "exec", self.container, *command], stdout=file)
            os.fsync(file.fileno())
        with part.open("rb") as file:
            command = ["pg_restore", "--file=/dev/null"]
            run(["docker", "exec", "--interactive", self.container, *command], stdin=file)
        part.rename(path)
        sync(path.parent)

    def drop(self):
        """Remove it."""
        self.sql(
            'DROP DATABASE IF EXISTS :"name" WITH (FORCE);',
            'DROP ROLE IF EXISTS :"name";',
        )


class Course:
    """All that there is of a course."""

    def __init__(self, name, data_dir, service):
        """Look for it."""
        self.name = name
        self.data = pathlib.Path(data_dir)
        self.closed = self.data / "closed" / name
        self.moves = {self.data / place / name: self.closed / place for place in PLACES}
        self.moves = {source: goes for source, goes in self.moves.items() if os.path.lexists(source)}
        self.dump = self.closed / DUMP
        self.gradebook = Gradebook(name, service)

    @property
    def dump_due(self):
        """Whether the gradebook has to be written.

        Whoever may log in may have changed it since the last time, and so may those who could as long as the
        course was open once more, which its directories tell.
        """
        book = self.gradebook
        return book.size is not None and (bool(book.login) or bool(self.moves) or not self.dump.is_file())

    def problems(self):
        """Say what is in the way of closing it."""
        found = []
        for source, goes in self.moves.items():
            if source.is_symlink() or not source.is_dir():
                found.append(f"{source} is no directory.")
            elif os.path.lexists(goes):
                found.append(
                    f"{source} was made again after the course was closed, and {goes} is there as well: move"
                    " one of them elsewhere."
                )
            elif source.lstat().st_dev != self.data.lstat().st_dev:
                found.append(
                    f"{source} is on another file system than {self.data}, so it cannot be moved in one step."
                )
        exchange = [self.data / "exchange" / self.name, self.closed / "exchange"]
        if not self.gradebook.container and any(path.is_dir() for path in exchange):
            found.append(
                "The gradebooks' service does not run on this server, so the course's cannot be kept."
            )
        return found

    def directories(self):
        """List what there is, as the module returns it."""
        closed = [self.closed / place for place in PLACES if (self.closed / place).is_dir()]
        found = []
        for path, goes in [*self.moves.items(), *((path, "") for path in closed)]:
            files, size = measure(path)
            found.append({"path": str(path), "goes": str(goes), "files": files, "bytes": size})
        return found

    def state(self):
        """Name the gradebook's state."""
        if self.gradebook.size is None:
            return "dropped" if self.dump.is_file() else "absent"
        return "open" if self.dump_due else "dumped"

    def close(self):
        """Move the directories, and write the gradebook."""
        if self.moves or self.dump_due:
            for path in (self.closed.parent, self.closed):
                with contextlib.suppress(FileExistsError):
                    path.mkdir(mode=0o700)
        due = self.dump_due
        # A dump from before the course was open once more is not ours to remove. Aside first of all: as long
        # as there is none, the next run writes one.
        if due and self.dump.is_file():
            date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self.dump.stat().st_mtime))
            self.dump.rename(self.closed / f"gradebook-{date}.dump")
            sync(self.closed)
        for source, goes in self.moves.items():
            source.rename(goes)
            sync(goes.parent)
            sync(source.parent)
        if due:
            self.gradebook.shut()
            self.gradebook.write(self.dump)


def work(name, data_dir, service, drop, check):
    """Do what is asked.

    Returns:
        dict: the module's result.

    Raises:
        CloseError: it cannot be done.
        OSError: a file cannot be moved or written.
    """
    if not NAME.fullmatch(name) or name in RESERVED:
        raise CloseError(f"{name!r} is no name of a course.")
    course = Course(name, data_dir, service)
    problems = course.problems()
    if problems and not check:
        raise CloseError(" ".join(problems))
    gradebook = course.gradebook
    dropped = drop and (gradebook.size is not None or gradebook.login is not None)
    result = {
        "changed": bool(course.moves or course.dump_due or dropped),
        "directories": course.directories(),
        "gradebook": {"bytes": gradebook.size or 0, "state": course.state()},
        "problems": problems,
    }
    if check:
        return result
    course.close()
    if dropped:
        if gradebook.size is not None and not course.dump.is_file():
            raise CloseError(f"The gradebook stays: there is no {course.dump}.")
        gradebook.drop()
    after = Course(name, data_dir, service)
    result["directories"] = after.directories()
    result["gradebook"]["state"] = after.state()
    return result


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "data_dir": {"type": "path", "required": True},
            "service": {"type": "str", "default": "gradebook_gradebook"},
            "drop": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    asked = module.params
    try:
        result = work(asked["name"], asked["data_dir"], asked["service"], asked["drop"], module.check_mode)
    except CloseError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}.")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
