"""An assignment for nbgrader, and its commands as graders and students give them."""

from __future__ import annotations

import json
from typing import Any

from hub import HubUser

# What a student writes into the assignment's one cell.
RIGHT = "def double(x):\n    return 2 * x\n"
WRONG = "def double(x):\n    return 4\n"

# By kernel: the language, a right and a wrong solution, and a test of it.
LANGUAGES = {
    "python3": ("python", RIGHT, WRONG, "assert double({}) == {}"),
    "bash": (
        "bash",
        "double() { echo $((2 * $1)); }\n",
        "double() { echo 4; }\n",
        '[ "$(double {})" = {} ]',
    ),
    "ir": (
        "R",
        "double <- function(x) 2 * x\n",
        "double <- function(x) 4\n",
        "stopifnot(double({}) == {})",
    ),
    "java": (
        "java",
        "int twice(int x) { return 2 * x; }\n",
        "int twice(int x) { return 4; }\n",
        "assert twice({}) == {};",
    ),
}


def cell(source: str, name: str, **meta: Any) -> dict[str, Any]:
    """A code cell with nbgrader's metadata (version 3 of its schema)."""
    nbgrader = {"schema_version": 3, "grade_id": name, "cell_type": "code"}
    flags = {"grade": False, "solution": False, "locked": False, "task": False}
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": name,
        "metadata": {"nbgrader": {**nbgrader, **flags, **meta}},
        "outputs": [],
        "source": source,
    }


def assignment(kernel: str) -> dict[str, Any]:
    """A notebook with a solution to write, a test of it, and one that students do not see."""
    language, right, _, test = LANGUAGES[kernel]
    hidden = f"### BEGIN HIDDEN TESTS\n{test.format(21, 42)}\n### END HIDDEN TESTS\n"
    tests = f"{test.format(2, 4)}\n{hidden}"
    solution = f"### BEGIN SOLUTION\n{right}### END SOLUTION\n"
    return {
        "cells": [
            cell(solution, "double", solution=True),
            cell(tests, "test-double", grade=True, locked=True, points=2),
        ],
        "metadata": {"kernelspec": {"name": kernel, "display_name": kernel, "language": language}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def write_assignment(grader: HubUser, course: str, name: str, kernel: str = "python3") -> None:
    """Put the assignment's source where the course's graders have it."""
    directory = f"courses/{course}/grading/source/{name}"
    grader.shell(f"mkdir -p ~/{directory}")
    model = {"type": "notebook", "content": assignment(kernel)}
    answer = grader.notebook_api("PUT", f"contents/{directory}/{name}.ipynb", json=model)
    assert answer.status_code in (200, 201), answer.text


def nbgrader(grader: HubUser, course: str, *commands: str) -> str:
    """Give commands of nbgrader in a course's directory."""
    lines = [f"nbgrader {command}" for command in commands]
    return grader.shell(" && ".join([f"cd ~/courses/{course}/grading", *lines]), timeout=300)


def solve(student: HubUser, name: str, solution: str) -> None:
    """Write a solution into an assignment that was fetched in the server's course."""
    student.run(
        "import json, os, pathlib\n"
        f"path = pathlib.Path.home() / os.environ['CAMPUS_COURSE'] / {name!r} / '{name}.ipynb'\n"
        "notebook = json.loads(path.read_text())\n"
        f"notebook['cells'][0]['source'] = {solution!r}\n"
        "path.write_text(json.dumps(notebook))"
    )


def scores(grader: HubUser, course: str, name: str) -> dict[str, float]:
    """Each student's score of an assignment, as the gradebook exports it."""
    nbgrader(grader, course, f"export --to=/tmp/grades.csv --assignment='[\"{name}\"]'")
    rows = grader.json(
        "import csv, json\nprint(json.dumps([row for row in csv.DictReader(open('/tmp/grades.csv'))]))"
    )
    return {row["student_id"]: float(row["score"]) for row in rows if row["assignment"] == name}


def submissions(student: HubUser) -> list[str]:
    """Names of what a student has handed in."""
    return json.loads(
        student.run(
            "import json, os\n"
            "root = os.environ['CAMPUS_EXCHANGE'] + '/' + os.environ['CAMPUS_COURSE'] + '/inbound'\n"
            "print(json.dumps(sorted(os.listdir(root + '/' + os.environ['NB_USER']))))"
        )
    )
