"""Filters of playbooks/semester.yml: what is in the way of closing a course, and how the rest is told."""

from __future__ import annotations


def semester_problems(name, delete, found, archive, spare, table, served):
    """Say why a course cannot be closed.

    Args:
        name (str): the course.
        delete (str): the course whose files are to be removed; empty for none.
        found (dict): what the module course_close says of it.
        archive (dict): what the module home_archive says of its closed directory.
        spare (int): MiB that stay free where the archives are.
        table (list[dict]): the inventory's courses.
        served (list[dict]): the courses of the accounts service that runs.

    Returns:
        list[str]: sentences.
    """
    problems = list(found["problems"])
    # A database, its dump and the archive of that: twice the first is more than the others take.
    book = found["gradebook"]
    needed = sum(one["bytes"] for one in found["directories"] if one["goes"])
    needed += 2 * book["bytes"] if book["state"] == "open" else 0
    if needed and needed + archive["needed"] + (int(spare) << 20) > archive["free"]:
        problems.append(
            f"The archive may take {size_text(needed + archive['needed'])}, and {spare} MiB have to stay"
            f" free, but only {size_text(archive['free'])} are free."
        )
    if not found["directories"] and not archive["homes"][0]["archive"]:
        problems.append(f"There is no course {name}: neither its directories nor an archive of it.")
    if delete and delete != name:
        problems.append(f"semester_delete names {delete}, but the course is {name}.")
    if name in [course["name"] for course in table]:
        problems.append(
            f"{name} is still in the inventory's table of courses: take it out and run `make run`, so that no"
            " server starts for it."
        )
    elif name in [course["name"] for course in served]:
        problems.append(
            f"{name} is not in the table of courses any more, but the cluster still has it: run `make run`."
        )
    return problems


def size_text(size):
    """Write a number of bytes for people.

    Args:
        size (int): bytes.
    """
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def semester_plan(name, delete, found, servers, archive, directory):
    """Tell what there is of a course, before anything is changed.

    Args:
        name (str): the course.
        delete (str): the course whose files are to be removed; empty for none.
        found (dict): what the module course_close says of it.
        servers (list[dict]): its services, as the Docker API has them.
        archive (str): its last archive; empty for none.
        directory (str): where the archives are.

    Returns:
        list[str]: a line for each thing.
    """
    lines = [
        f"{one['path']}: {one['files']} files, {size_text(one['bytes'])}, "
        + (f"goes to {one['goes']}" if one["goes"] else "closed")
        for one in found["directories"]
    ]
    book = found["gradebook"]
    lines.append(
        {
            "absent": "gradebook: none",
            "open": f"gradebook: database {name}, {size_text(book['bytes'])}, goes to a file",
            "dumped": f"gradebook: database {name}, {size_text(book['bytes'])}, is in a file",
            "dropped": "gradebook: written to a file, and not in the database any more",
        }[book["state"]]
    )
    users = sorted(service["Spec"].get("Labels", {}).get("org.jupyterhub.user", "?") for service in servers)
    lines.append(f"servers that run: {len(users)}{', of ' * bool(users)}{', '.join(users)}")
    lines.append(f"last archive: {directory}/{archive}" if archive else "last archive: none")
    if delete:
        lines.append("after the archive is verified, the closed directory and the gradebook are removed")
    return lines


def semester_report(name, home, closed, directory):
    """Tell what became of a course.

    Args:
        name (str): the course.
        home (dict): what the module home_archive says of its closed directory.
        closed (str): the closed directory.
        directory (str): where the archives are.

    Returns:
        list[str]: lines.
    """
    archive = f"{directory}/{home['archive']}"
    rest = {
        "archived": f"{closed} and the gradebook stay until semester_delete={name} is said",
        "current": f"no change since; {closed} and the gradebook stay until semester_delete={name} is said",
        "deleted": f"{closed} and the gradebook were removed",
        "absent": f"{closed} and the gradebook were removed earlier",
    }[home["state"]]
    return [
        f"{name} is closed, and archived in {archive}",
        rest,
        f"What is in it: tar --list --verbose --file={archive}",
        'How a course comes back: docs/courses.md, "At the end of a semester"',
    ]


class FilterModule:
    """Ansible's entry point."""

    def filters(self):
        """Return the filters by name."""
        return {
            "semester_problems": semester_problems,
            "semester_plan": semester_plan,
            "semester_report": semester_report,
        }
