"""Courses: a server belongs to one of its user's, and gets image, limits, folders and grading from it.

Who is in a course is said by two hub groups, which have the names that nbgrader gives them ("Using nbgrader
with JupyterHub" in its documentation): students of `algo1` are in `nbgrader-algo1`, its graders in
`formgrade-algo1`. On the storage, where a file has one group only, all of them are in `course-algo1` besides.

What lies where (files/accounts.py makes it):

    /courses/NAME/material    read by all, written by graders
    /courses/NAME/shared      written by all (option `shared`)
    /courses/NAME/grading     graders only: sources, collected submissions, grades
    /exchange/NAME            nbgrader's exchange
"""

import hashlib
import hmac
from dataclasses import dataclass
from datetime import UTC, date, datetime
from html import escape
from pathlib import Path

from spawner import LABEL, NfsSwarmSpawner, SpawnFailed, printable
from traitlets import Dict, List, TraitError, Unicode, default, validate

STUDENT, GRADER = "student", "grader"
LIMITS = ("mem_guarantee", "mem_limit", "cpu_guarantee", "cpu_limit")
COURSES, EXCHANGE = "/srv/courses", "/srv/nbgrader/exchange"


@dataclass(frozen=True)
class Course:
    """One line of the table.

    Attributes:
        name: Name in groups, paths and addresses.
        title: Name for people.
        image: Image of the students' servers; empty: that of their role.
        grader_image: Image of the graders' servers; empty: that of their role.
        kernels: Kernels that a server offers; empty: all of the image.
        mem_guarantee: As in JupyterHub's Spawner, as are the next three; None: the site's.
        mem_limit: See there.
        cpu_guarantee: See there.
        cpu_limit: See there.
        shared: Whether there is a folder that all members write.
        nbgrader: Whether there is an exchange and a gradebook.
        opens: The first day on which students have it.
        closes: The last one.
    """

    name: str
    title: str = ""
    image: str = ""
    grader_image: str = ""
    kernels: tuple[str, ...] = ()
    mem_guarantee: str | int | None = None
    mem_limit: str | int | None = None
    cpu_guarantee: float | None = None
    cpu_limit: float | None = None
    shared: bool = False
    nbgrader: bool = False
    opens: date = date.min
    closes: date = date.max

    @classmethod
    def from_settings(cls, settings):
        """Make one of plain values.

        Args:
            settings: dict by field, with dates as ISO 8601 texts.

        Raises:
            TypeError: a field is unknown or missing.
            ValueError: a date is none.
        """
        values = dict(settings)
        for key in ("opens", "closes"):
            if key in values:
                values[key] = date.fromisoformat(values[key])
        return cls(**{**values, "kernels": tuple(values.get("kernels", ()))})

    @property
    def students(self):
        """Hub group of the students."""
        return f"nbgrader-{self.name}"

    @property
    def graders(self):
        """Hub group of the graders."""
        return f"formgrade-{self.name}"

    @property
    def members(self):
        """The storage's group of both."""
        return f"course-{self.name}"

    def role_of(self, groups, today):
        """What somebody is in the course now.

        Args:
            groups: names of the hub groups.
            today: the date.

        Returns:
            `grader`, at any time; `student`, between the first and the last day; else None.
        """
        if self.graders in groups:
            return GRADER
        return STUDENT if self.students in groups and self.opens <= today <= self.closes else None


class CourseSpawner(NfsSwarmSpawner):
    """A spawner whose servers belong to a course, if their user is in any."""

    courses = List(
        Dict(),
        config=True,
        help="""
        The courses, each a dict with the fields of `Course`: `name`, and what differs from the site's own.
        The start page asks for a course instead of one of `allowed_images`, which only the REST API chooses.
        """,
    )

    @validate("courses")
    def _validate_courses(self, proposal):
        try:
            self._table = [Course.from_settings(settings) for settings in proposal.value]
        except (TypeError, ValueError) as error:
            raise TraitError(f"courses: {error}") from error
        return proposal.value

    gradebook_url = Unicode(
        "postgresql+psycopg2://{course}:{password}@gradebook/{course}",
        config=True,
        help="""
        The gradebook of a course as SQLAlchemy's URL. Fields: {course}, and {password}, which follows from
        `gradebook_key`.
        """,
    )

    grading_network = Unicode(
        config=True,
        help="""
        Overlay network of the gradebooks: graders' servers are on it besides. Default: the gradebooks are on
        the servers' own network.
        """,
    )

    gradebook_key = Unicode(
        config=True,
        help="""
        Secret of which the gradebooks' passwords are made. Default: the content of the Docker secret
        `gradebook_key`.
        """,
    )

    @default("gradebook_key")
    def _default_gradebook_key(self):
        path = Path("/run/secrets/gradebook_key")
        return path.read_text().strip() if path.is_file() else ""

    @default("options_form")
    def _default_options_form(self):
        return self.course_form

    def __init__(self, **kwargs):
        """Take the hub's arguments as they are."""
        self._table = []
        super().__init__(**kwargs)
        self.course, self.role = None, None
        self._refused = False

    # -- whose --

    @property
    def my_courses(self):
        """The courses that the user has now: (course, role) by name, in the table's order."""
        groups, today = set(self.group_names), datetime.now(UTC).date()
        found = [(course, course.role_of(groups, today)) for course in self._table]
        return {course.name: (course, role) for course, role in found if role}

    def choose_course(self):
        """Which course this start is for.

        A named server that is called like a course is that course's. Else the user's choice decides, of which
        an empty text is one, too: none. Who has a single course is not asked and has that.

        A choice that the user does not have (any more) counts as none made: the hub repeats the last start's
        options where nobody gives new ones, and that may have been in another semester.

        Returns:
            (course, role), or (None, None).
        """
        mine = self.my_courses
        wanted = self.name if self.name in mine else self.user_options.get("course")
        if wanted and not (isinstance(wanted, str) and wanted in mine):
            self.log.warning("%s does not have the course %s", self._log_name, printable(repr(wanted)))
            wanted = None
        if not wanted and len(mine) == 1:
            return next(iter(mine.values()))
        return mine.get(wanted or "", (None, None))

    # -- the start page --

    @property
    def choices(self):
        """What a start can be for, as (course, role); (None, None) is for none. See `choose_course`."""
        mine = self.my_courses
        if self.name in mine:
            return [mine[self.name]]
        return list(mine.values()) if len(mine) == 1 else [*mine.values(), (None, None)]

    def course_form(self, _spawner=None):
        """The start page's question: which course?

        Empty when there is nothing to choose: the hub starts a server at once then. Not so when it asks after
        a refusal, since it would start something else than what was wanted, and tell nobody.
        """
        refused, self._refused = self._refused, False
        choices = self.choices
        if len(choices) == 1 and not refused:
            return ""
        entries = [
            (course.name, course.title or course.name, self.describe_course(course, role))
            if course
            else ("", "No course", "Your own files only.")
            for course, role in choices
        ]
        rows = "".join(
            f'<div class="form-check mb-2"><input class="form-check-input" type="radio" name="course" '
            f'id="course-{number}" value="{escape(name)}"{" checked" if number == 0 else ""}>'
            f'<label class="form-check-label" for="course-{number}"><strong>{escape(title)}</strong><br>'
            f'<span class="text-muted">{escape(text)}</span></label></div>'
            for number, (name, title, text) in enumerate(entries)
        )
        return f'<fieldset><legend class="fs-5">Which course is it for?</legend>{rows}</fieldset>'

    def describe_course(self, course, role):
        """Image and resources of a course in one line, as the start page shows them.

        Args:
            course: the course.
            role: what the user is in it.
        """
        image = self.course_image(course, role).partition("@")[0].rpartition("/")[2].partition(":")[0]
        memory = course.mem_limit or self.mem_limit
        cpu = course.cpu_limit or self.cpu_limit
        parts = [
            "You grade." if role == GRADER else "",
            f"Image {image}.",
            f"Kernels: {', '.join(course.kernels)}." if course.kernels else "",
            f"Memory {size_text(memory)}." if memory else "",
            f"{cpu:g} CPU." if cpu else "",
        ]
        return " ".join(part for part in parts if part)

    def options_from_form(self, formdata):
        """What the start page's form, or `?opt-course=` in its address, asks for.

        Args:
            formdata: lists of texts by field.

        Raises:
            SpawnFailed: the user does not have the course that was asked for.
        """
        if not formdata.get("course"):
            return {}
        wanted = formdata["course"][0]
        if wanted and wanted not in self.my_courses:
            raise SpawnFailed(
                "You are not in this course, or it is closed.",
                reason="course",
                detail=f"asked for {wanted!r}",
                status_code=403,
            )
        return {"course": wanted}

    def options_from_query(self, query_data):
        """What the start page's address asks for.

        Args:
            query_data: lists of texts by field, without their `opt-`.

        Raises:
            SpawnFailed: the user does not have the course that was asked for.
        """
        try:
            return super().options_from_query(query_data)
        except SpawnFailed:
            # For the form, which the hub asks for next, and shows with the reason.
            self._refused = True
            raise

    # -- what a server gets --

    async def start_service(self):
        """Settle the course before everything else; its limits are this start's only."""
        self.course, self.role = self.choose_course()
        before = {trait: getattr(self, trait) for trait in LIMITS}
        try:
            for trait in LIMITS:
                value = getattr(self.course, trait, None)
                if value is not None:
                    setattr(self, trait, value)
            return await super().start_service()
        finally:
            for trait, value in before.items():
                setattr(self, trait, value)

    def choose_image(self):
        """The course's image, or that of the user's role."""
        return self.course_image(self.course, self.role)

    def course_image(self, course, role):
        """The image of a course, or that of the user's role.

        Args:
            course: the course, or None.
            role: what the user is in it.
        """
        image = getattr(course, "grader_image" if role == GRADER else "image", "")
        return image or super().choose_image()

    @property
    def storage_group_names(self):
        """Besides the site's: the groups of all courses, whichever this server is for."""
        mine = set(self.group_names)
        names = set(super().storage_group_names)
        for course in self._table:
            own = mine & {course.students, course.graders}
            names |= own | ({course.members} if own else set())
        return sorted(names)

    @property
    def mounts(self):
        """Besides the site's: the course's directories."""
        return super().mounts + [self.nfs_mount(**mount) for mount in self.course_mounts]

    @property
    def course_mounts(self):
        """Arguments of `nfs_mount` for the course's directories.

        Graders have its whole directory. A file has one group, and with it one right for all in it: that
        students read what graders write comes from a mount that is read-only.
        """
        if self.course is None:
            return []
        name = self.course.name
        mounts = []
        if self.role == GRADER:
            mounts.append(
                {"name": f"course-{name}", "device": f":/courses/{name}", "target": f"{COURSES}/{name}"}
            )
        else:
            folders = [("material", True)] + [("shared", False)] * self.course.shared
            mounts += [
                {
                    "name": f"course-{name}-{folder}",
                    "device": f":/courses/{name}/{folder}",
                    "target": f"{COURSES}/{name}/{folder}",
                    "read_only": read_only,
                }
                for folder, read_only in folders
            ]
        if self.course.nbgrader:
            device, target = f":/exchange/{name}", f"{EXCHANGE}/{name}"
            mounts.append({"name": f"exchange-{name}", "device": device, "target": target})
        return mounts

    @property
    def has_gradebook(self):
        """Whether the server is one of a grader of a course with nbgrader."""
        return self.role == GRADER and self.course.nbgrader

    @property
    def networks(self):
        """Besides the servers' own: the gradebooks', for who has one."""
        more = [self.grading_network] if self.grading_network and self.has_gradebook else []
        return super().networks + more

    @property
    def labels(self):
        """Besides the user: the course, by which playbooks/semester.yml finds the servers to end."""
        return super().labels | ({LABEL + "course": self.course.name} if self.course else {})

    def get_env(self):
        """Besides the identity: the course, for the image's own configuration."""
        env = super().get_env()
        if self.course is None:
            return env
        ours = {"CAMPUS_COURSE": self.course.name, "CAMPUS_COURSE_ROLE": self.role}
        if self.course.kernels:
            ours["CAMPUS_KERNELS"] = ",".join(self.course.kernels)
        if self.course.nbgrader:
            ours["CAMPUS_EXCHANGE"] = EXCHANGE
        if self.has_gradebook:
            ours["CAMPUS_GRADEBOOK"] = self.gradebook_url.format(
                course=self.course.name, password=self.gradebook_password(self.course.name)
            )
        return {**env, **{key: value for key, value in ours.items() if key not in self.environment}}

    def gradebook_password(self, course):
        """The password of a course's gradebook, as plugins/filter/courses.py derives it.

        Args:
            course: its name.
        """
        return hmac.new(self.gradebook_key.encode(), course.encode(), hashlib.sha256).hexdigest()


def size_text(size):
    """A size for people.

    Args:
        size: bytes, or a text such as `1G`.
    """
    if isinstance(size, str):
        return size
    for unit, factor in (("G", 2**30), ("M", 2**20)):
        if size >= factor:
            return f"{size / factor:g}{unit}"
    return str(size)
