"""Filters of the table `courses`: what is wrong with it, and what follows from it for other roles."""

from __future__ import annotations

import datetime
import hashlib
import hmac
import re

# A course's name is part of paths, of group names and of a database's: no capitals, no dots, not too long.
NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
# Databases that PostgreSQL has of its own accord.
RESERVED = {"postgres", "template0", "template1"}
# Kernels that the cluster's images can have.
KERNELS = ("python", "r", "octave", "bash", "javascript", "java")
# As JupyterHub reads it: a capital, and no text without a unit.
SIZE = re.compile(r"\d+(\.\d+)?[KMGT]")
# Not nothing, and nothing that would be too little for any home.
QUOTA = re.compile(r"(?=.*[1-9])\d+(\.\d+)?[MGT]", re.IGNORECASE)
# KiB: file systems round a limit to their blocks, and would then never have the one that was set.
QUOTA_STEP = 64
KEYS = {
    "name": str,
    "title": str,
    "students": dict,
    "graders": dict,
    "image": str,
    "grader_image": str,
    "kernels": list,
    "memory": dict,
    "cpu": dict,
    "quota": str,
    "shared": bool,
    "nbgrader": bool,
    "from": datetime.date,
    "until": datetime.date,
}
KINDS = {str: "a text", dict: "a mapping", list: "a list", bool: "true or false", datetime.date: "a date"}


def as_date(value):
    """Read a date.

    Args:
        value (date | str | None): as YAML has it.

    Returns:
        date | None: the date; None for none.

    Raises:
        ValueError: it is no date as ISO 8601 has it.
    """
    if value is None or (isinstance(value, datetime.date) and not isinstance(value, datetime.datetime)):
        return value
    return datetime.date.fromisoformat(str(value))


def course_problems(courses, images, kernels):
    """Tell what is wrong with the table.

    Args:
        courses (list[dict]): the table, as an inventory has it.
        images (list[str]): names of the cluster's images.
        kernels (list[str]): kernels that a course may name.

    Returns:
        list[str]: one sentence each; empty if nothing is.
    """
    if not isinstance(courses, list):
        return ["courses is no list."]
    problems = []
    names = [course.get("name") for course in courses if isinstance(course, dict)]
    for position, course in enumerate(courses, 1):
        if not isinstance(course, dict) or not isinstance(course.get("name"), str):
            problems.append(f"courses: entry {position} has no name.")
            continue
        name = course["name"]
        found = [*_shape(course), *_values(course, images, kernels)]
        if names.count(name) > 1 and names.index(name) < position - 1:
            found.append("is there twice")
        problems += [f"courses: {name!r} {problem}." for problem in found]
    return problems


def _shape(course):
    """Yield what is wrong with a course's keys and their types."""
    name = course["name"]
    if not NAME.fullmatch(name) or name in RESERVED:
        yield "is no name: small letters, digits, - and _, a letter first, at most 40, and no database's own"
    for key, value in course.items():
        if key not in KEYS:
            yield f"has the key {key!r}, which is none of {', '.join(KEYS)}"
        elif KEYS[key] is datetime.date:
            try:
                as_date(value)
            except ValueError:
                yield f"has {key}: {str(value)!r}, which is no date such as 2026-10-01"
        elif not isinstance(value, KEYS[key]):
            yield f"has {key}, which is not {KINDS[KEYS[key]]}"
    for key, inner in (
        ("students", {"ldap_group"}),
        ("graders", {"ldap_group"}),
        ("memory", {"guarantee", "limit"}),
        ("cpu", {"guarantee", "limit"}),
    ):
        value = course.get(key)
        if isinstance(value, dict) and set(value) - inner:
            yield f"has {key}.{sorted(set(value) - inner)[0]}; there is {', '.join(sorted(inner))}"
    for key in ("students", "graders"):
        group = course.get(key)
        if key == "students" and key not in course:
            yield "has no students: {ldap_group: DN}"
        elif key in course and not (isinstance(group, dict) and "=" in str(group.get("ldap_group", ""))):
            yield f"has {key} without ldap_group, the DN of a group"


def _values(course, images, kernels):
    """Yield which values of a course cannot be."""
    for key in ("image", "grader_image"):
        if key in course and course[key] not in images:
            yield f"has {key}: {course[key]}; the cluster's images are {', '.join(sorted(images))}"
    unknown = sorted(set(course.get("kernels") or []) - set(kernels))
    if unknown:
        yield f"wants the kernels {', '.join(unknown)}; there are {', '.join(kernels)}"
    if course.get("nbgrader") and "graders" not in course:
        yield "has nbgrader and no graders"
    memory = course.get("memory") or {}
    for key in ("guarantee", "limit"):
        if isinstance(memory, dict) and key in memory and not is_size(memory[key]):
            yield f"has memory.{key}: {memory[key]!r}, which is no size such as 512M"
    if isinstance(course.get("quota"), str) and not is_quota(course["quota"]):
        yield f"has quota: {course['quota']!r}, which is no size such as 5G"
    cpu = course.get("cpu") or {}
    for key in ("guarantee", "limit"):
        # Ansible's numbers are of types of its own; a truth value is a number to Python.
        number = isinstance(cpu, dict) and isinstance(cpu.get(key, 0), (int, float))
        if isinstance(cpu, dict) and (not number or isinstance(cpu.get(key), bool)):
            yield f"has cpu.{key}: {cpu[key]!r}, which is no number"
    try:
        opens, closes = as_date(course.get("from")), as_date(course.get("until"))
    except ValueError:
        return  # said already
    if opens and closes and closes < opens:
        yield f"ends on {closes}, before it begins on {opens}"


def is_size(value):
    """Tell whether a value is a size as JupyterHub takes it.

    Args:
        value (str | int): a text such as `512M`, or bytes.

    Returns:
        bool: whether it is.
    """
    if isinstance(value, int):
        return not isinstance(value, bool) and value > 0
    return isinstance(value, str) and SIZE.fullmatch(value) is not None


def course_kernels(courses):
    """List the kernels that courses ask for, as far as the cluster's images can have them.

    Args:
        courses (list[dict]): the table, which may be wrong still.

    Returns:
        list[str]: names as in `images_kernels`.
    """
    wanted = set()
    for course in courses if isinstance(courses, list) else []:
        named = course.get("kernels") if isinstance(course, dict) else None
        wanted |= {str(kernel) for kernel in named} if isinstance(named, list) else set()
    return [kernel for kernel in KERNELS if kernel in wanted]


def course_ldap_groups(courses):
    """Name the hub groups of all courses.

    Args:
        courses (list[dict]): the table.

    Returns:
        dict[str, str]: hub group to DN. The names are nbgrader's own, see "Using nbgrader with JupyterHub" of
        its documentation.
    """
    groups = {}
    for course in courses:
        groups[f"nbgrader-{course['name']}"] = course["students"]["ldap_group"]
        if "graders" in course:
            groups[f"formgrade-{course['name']}"] = course["graders"]["ldap_group"]
    return groups


def course_settings(courses, references, grader_image=""):
    """Write the table as the hub's module `courses` takes it.

    Args:
        courses (list[dict]): the table.
        references (dict[str, str]): name of an image to its reference.
        grader_image (str): name of the image of graders of whose course the table does not say it.

    Returns:
        list[dict]: plain values only, without what was not said.
    """
    settings = []
    for course in courses:
        memory, cpu = course.get("memory") or {}, course.get("cpu") or {}
        entry = {
            "name": course["name"],
            "title": course.get("title"),
            "image": references.get(course.get("image")),
            "grader_image": references.get(course.get("grader_image", grader_image)),
            "kernels": course.get("kernels"),
            "mem_guarantee": memory.get("guarantee"),
            "mem_limit": memory.get("limit"),
            "cpu_guarantee": cpu.get("guarantee"),
            "cpu_limit": cpu.get("limit"),
            "shared": course.get("shared"),
            "nbgrader": course.get("nbgrader"),
            "opens": str(as_date(course.get("from")) or ""),
            "closes": str(as_date(course.get("until")) or ""),
        }
        settings.append({key: value for key, value in entry.items() if value not in (None, "")})
    return settings


def course_directories(courses):
    """Write what the accounts service needs of the table.

    Args:
        courses (list[dict]): the table.

    Returns:
        list[dict]: name, shared and nbgrader of each.
    """
    return [
        {
            "name": course["name"],
            "shared": bool(course.get("shared")),
            "nbgrader": bool(course.get("nbgrader")),
        }
        for course in courses
    ]


def is_quota(size):
    """Tell whether a text is a size that a quota may have.

    Args:
        size (str): such as 512M or 5G.
    """
    return bool(QUOTA.fullmatch(size))


def kibibytes(size):
    """Read a size.

    Args:
        size (str): such as 512M or 5G; the units are powers of 1024.

    Returns:
        int: KiB, a multiple of QUOTA_STEP; 0 for an empty text.
    """
    if not size:
        return 0
    kib = float(size[:-1]) * 1024 ** ("MGT".index(size[-1].upper()) + 1)
    return -int(-kib // QUOTA_STEP) * QUOTA_STEP


def quotas(courses, directory, default=""):
    """Write what files/quota.py goes by.

    Args:
        courses (list[dict]): the table.
        directory (str): where the exports and the accounts are.
        default (str): size that the files of every user may have, empty for no limit.

    Returns:
        dict: the configuration. The courses' students have their quotas; who grades one has that of all, or
            none, whatever else he is.
    """
    graders = [course["name"] for course in courses if "graders" in course]
    students = {course["name"]: course["quota"] for course in courses if "quota" in course}
    groups = {f"nbgrader-{name}": kibibytes(size) for name, size in students.items()}
    if groups:
        groups |= {f"formgrade-{name}": kibibytes(default) for name in graders}
    return {"directory": directory, "default": kibibytes(default), "groups": groups}


def gradebook_passwords(courses, key):
    """Derive the password of each gradebook, as the hub does (files/courses.py).

    Args:
        courses (list[dict]): the table.
        key (str): the cluster's secret for it.

    Returns:
        dict[str, str]: name of a course with nbgrader to its password, an HMAC (RFC 2104) of the name.
    """
    return {
        course["name"]: hmac.new(key.encode(), course["name"].encode(), hashlib.sha256).hexdigest()
        for course in courses
        if course.get("nbgrader")
    }


class FilterModule:
    """Ansible's entry point."""

    def filters(self):
        """Return the filters by name."""
        return {
            "course_problems": course_problems,
            "course_ldap_groups": course_ldap_groups,
            "course_settings": course_settings,
            "course_directories": course_directories,
            "course_kernels": course_kernels,
            "gradebook_passwords": gradebook_passwords,
            "is_quota": is_quota,
            "is_size": is_size,
            "quotas": quotas,
        }
