"""nbgrader for a course whose exchange lies on NFS, with real owners and among students who try things.

nbgrader's own exchange is one directory that everybody may write into, where a submission is readable to all
who guess its name, and belongs to whoever it says it belongs to. Here each student has a box for submissions
(files/accounts.py makes it), which is the student's and the graders' by its group:

- students see their box as the exchange's `inbound`, and nbgrader's own commands hand in there,
- collecting looks into all boxes, and takes what is its owner's, and plain files only: a symlink would be
  read with the rights of the grader,
- what came after the due date, by the storage's clock, takes the place of nothing that is collected,
- graders collect and autograde one at a time, and what is collected is there whole or as it was before,
- autograding runs the student's code in a sandbox, without network and without the grader's files, on a copy,
- what students wrote is shown without anything that a browser would run, and feedback without hidden tests.

The hub says in the environment which course a server is for (files/courses.py).
"""

import asyncio
import builtins
import errno
import fcntl
import os
import re
import secrets
import shutil
import signal
import stat
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from jinja2 import pass_context
from jupyter_client.manager import AsyncKernelManager
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.strings import clean_html
from nbconvert.preprocessors import CSSHTMLHeaderPreprocessor, Preprocessor
from nbgrader.api import Gradebook, MissingEntry
from nbgrader.converters import Autograde
from nbgrader.exchange.default import ExchangeCollect, ExchangeReleaseFeedback, ExchangeSubmit
from nbgrader.preprocessors import ClearHiddenTests, ClearSolutions, GetGrades
from nbgrader.utils import get_username, parse_utc

COURSES = Path("/srv/courses")
SANDBOX = "/usr/local/bin/campus-sandbox"
# What a student may be late by the storage's clock without a word: copying takes its time, clocks differ.
TOLERANCE = timedelta(minutes=10)
# What one submission may have, besides nbgrader's limit of its size (CourseDirectory.max_dir_size).
MOST_FILES, MOST_DEPTH = 10_000, 32
TOO_MANY = "it has too many files or directories"
NOT_LOOKED_AT = "it is not looked at, since with the later ones it has too many files or directories"
# How many submissions of an assignment are looked at in a box, the last ones by the times in their names: a
# student can make as many names as there is room for.
MOST_SUBMISSIONS = 200
# How much is looked at in all of them together, while all other graders of the course wait: the last one, and
# one before it, may be as large as they can.
MOST_IN_BOX = 2 * MOST_FILES
# What of a notebook's outputs is shown. All others may have something for a browser to run in them.
SHOWN = {"text/plain", "text/html", "text/markdown", "image/png", "image/jpeg"}
BASE64 = re.compile(r"[A-Za-z0-9+/=\s]*")
# What students find in the place of a solution, in languages that nbgrader does not know.
STUBS = {"bash": "# YOUR CODE HERE\nfalse", "typescript": "// YOUR CODE HERE"}
# Kernels whose notebooks are not graded by running them, and why.
TCP_ONLY = "its kernel talks over TCP only, which student code does not get"
NOT_RUN = {
    "deno": TCP_ONLY,
    "java": TCP_ONLY,
    "octave": "its kernel gives errors as plain output, for which there are all points",
}
# What of a grader's environment student code gets, too. By nbgrader's own, cells know what they are run for.
KEPT = ("LANG", "LC_ALL", "PATH", "TZ", "VIRTUAL_ENV", "NBGRADER_EXECUTION", "NBGRADER_VALIDATING")
# Whoever collects or autogrades holds a lock on this file of the course's.
LOCK = ".campus-lock"
# How many seconds Formgrader waits for it: the grader's server does nothing else meanwhile.
PATIENCE = 60
# nbgrader's own, before `share_work` puts another one in its place.
start_autograde = Autograde.start


def configure(c):
    """Set what nbgrader has to know of the server's course.

    Args:
        c: the configuration.
    """
    course, exchange = os.environ.get("CAMPUS_COURSE"), os.environ.get("CAMPUS_EXCHANGE")
    if not course or not exchange:
        return
    c.CourseDirectory.course_id = course
    # Members share files by their group. It also spares nbgrader the wish to write the exchange's root.
    c.CourseDirectory.groupshared = True
    # ~/COURSE/ASSIGNMENT: courses may well have assignments of the same name.
    c.Exchange.path_includes_course = True
    c.ExchangeFactory.submit = Submit
    if os.environ.get("CAMPUS_COURSE_ROLE") != "grader":
        c.Exchange.root = str(student_view(Path(exchange, course)))
        return
    c.Exchange.root = exchange
    c.ExchangeFactory.collect = Collect
    # By name nobody is known in the container; Collect goes by the boxes' owners instead.
    c.ExchangeCollect.check_owner = False
    c.ExchangeFactory.release_feedback = ReleaseFeedback
    c.CourseDirectory.root = str(course_directory(course) / "grading")
    if os.environ.get("CAMPUS_GRADEBOOK"):
        c.CourseDirectory.db_url = os.environ["CAMPUS_GRADEBOOK"]
    c.Execute.kernel_manager_class = SandboxedKernelManager
    c.ClearSolutions.code_stub = ClearSolutions().code_stub | STUBS
    show_safely(c)
    share_work()


def course_directory(course):
    """Where the graders of a course work: by the link in the home, below which Formgrader opens notebooks.

    What a grader has made under the link's name is private, and nothing for what is collected.

    Args:
        course: its name.
    """
    link = Path.home() / "courses" / course
    return link if link.resolve() == COURSES / course else COURSES / course


def show_safely(c):
    """Let formgrader and feedback show nothing that runs: they are pages of the grader's own server.

    nbconvert has a setting for that, which nbgrader's templates do not follow in all places.

    Args:
        c: the configuration.
    """
    from nbgrader.server_extensions.formgrader.handlers import SubmissionFilesHandler

    c.HTMLExporter.sanitize_html = True
    c.HTMLExporter.filters = {"markdown2html": clean_markdown}
    c.HTMLExporter.preprocessors = [PlainOutputs]
    # The first two are nbgrader's own.
    c.GenerateFeedback.preprocessors = [GetGrades, CSSHTMLHeaderPreprocessor, WithoutHiddenTests]
    # Files that were handed in are served as they are, HTML too.
    SubmissionFilesHandler.set_extra_headers = forbid_scripts


def share_work():
    """Let graders work at once: autograding is for one at a time, and Formgrader goes by what others did.

    nbgrader has no setting for either. It loads its configuration many times in a server.
    """
    from nbgrader.server_extensions.formgrader.base import BaseHandler

    Autograde.start = autograde_alone
    BaseHandler.on_finish = end_session


def autograde_alone(converter):
    """Autograde while no other grader of the course does, or collects.

    Args:
        converter: nbgrader's Autograde.
    """
    with alone(converter.coursedir, converter.log):
        start_autograde(converter)


def end_session(handler):
    """Let no request find the transaction of another one, which may be old, or broken with its connection.

    Formgrader has one session of the gradebook for all requests, and with it what it has read once. The
    connection is closed as well: after a restart of the gradebook it would be the next request's.

    Args:
        handler: Formgrader's, whose request is answered.
    """
    gradebook, handler.settings["nbgrader_gradebook"] = handler.settings.get("nbgrader_gradebook"), None
    if gradebook is not None:
        gradebook.close()
        # Only what could be closed is used again; otherwise nbgrader makes a new one.
        handler.settings["nbgrader_gradebook"] = gradebook


@contextmanager
def alone(coursedir, log):
    """Have other graders of the course wait: who does the same to the same students would undo it.

    Args:
        coursedir: nbgrader's CourseDirectory.
        log: where to tell who has to wait.

    Raises:
        TimeoutError: in Formgrader, it takes another grader too long.
    """
    # Over NFS, only what is open for writing can be locked (flock(2)).
    lock = os.open(Path(coursedir.root, LOCK), os.O_RDWR | os.O_CREAT, 0o660)
    try:
        # It is for all graders, whatever the umask of its owner says, who alone may change that.
        with suppress(PermissionError):
            os.fchmod(lock, 0o660)
        wait_for(lock, log)
        look_again(coursedir)
        yield
    finally:
        os.close(lock)


def wait_for(lock, log):
    """Get a lock.

    Args:
        lock: descriptor of the file.
        log: where to tell who has to wait.

    Raises:
        TimeoutError: in Formgrader, it takes another grader too long.
    """
    if try_lock(lock):
        return
    log.warning("Another grader collects or grades; waiting ...")
    end = time.monotonic() + (PATIENCE if in_server() else float("inf"))
    # Asked again and again, since over NFS waiting is no more than that, with longer and longer pauses.
    while not try_lock(lock):
        if time.monotonic() > end:
            raise TimeoutError("another grader still collects or grades; try again later")
        time.sleep(0.5)


def try_lock(lock):
    """Get a lock if nobody has it, and tell whether.

    Args:
        lock: descriptor of the file.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def in_server():
    """Whether this is a server's loop, which answers nobody as long as something is waited for."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def look_again(coursedir):
    """Have the node ask the storage for what others have just written, as it does when a directory is opened.

    It would go by what it remembers of directories for a minute otherwise (nfs(5), acdirmax).

    Args:
        coursedir: nbgrader's CourseDirectory.
    """
    for step in (coursedir.submitted_directory, coursedir.autograded_directory):
        place = Path(coursedir.format_path(step, ".", "."))
        for pattern in ("*", f"{coursedir.student_id or '*'}/*"):
            list(place.glob(pattern))


@pass_context
def clean_markdown(context, source):
    """Markdown as HTML without anything that runs: nbconvert's own filter, cleaned.

    Args:
        context: of the template.
        source: the text.
    """
    return clean_html(HTMLExporter().markdown2html(context, source))


def forbid_scripts(handler, path):
    """Let a browser take a file for that of a foreign site, and run nothing in it.

    Args:
        handler: tornado's StaticFileHandler.
        path: the file.
    """
    handler.set_header("Content-Security-Policy", "sandbox")


class PlainOutputs(Preprocessor):
    """Leaves of a notebook's outputs what can be shown safely."""

    def preprocess_cell(self, cell, resources, index):
        """Drop other kinds of data, images that are none, and metadata, which becomes attributes of HTML."""
        for output in cell.get("outputs", []):
            if "data" in output:
                output["metadata"] = {}
                output["data"] = {
                    kind: value
                    for kind, value in output["data"].items()
                    if kind in SHOWN and (not kind.startswith("image/") or BASE64.fullmatch(value))
                }
        return cell, resources


class WithoutHiddenTests(ClearHiddenTests):
    """Takes hidden tests out of feedback, where autograding has brought them back for graders."""

    def preprocess_cell(self, cell, resources, index):
        """Remove the tests, and what may quote them: of the cell's outputs the names of errors stay."""
        shown = without_region(cell["source"], self.begin_test_delimeter, self.end_test_delimeter)
        if shown != cell["source"]:
            cell["source"] = shown
            errors = [output for output in cell.get("outputs", []) if output["output_type"] == "error"]
            for error in errors:
                # A name that the student's code has made may quote as well.
                name = error["ename"] if hasattr(builtins, error["ename"]) else "Error"
                error["ename"], error["evalue"], error["traceback"] = name, "", [name]
            if "outputs" in cell:
                cell["outputs"] = errors
        return cell, resources


def without_region(source, begin, end):
    """The lines of a cell that are in no region; one that is not closed goes on to the cell's end.

    Args:
        source: the cell's text.
        begin: what the first line of a region has in it.
        end: what the last one has.
    """
    kept, inside = [], False
    for line in source.split("\n"):
        if begin in line or end in line:
            inside = begin in line
        elif not inside:
            kept.append(line)
    return "\n".join(kept)


def student_view(course):
    """Make the exchange's root as its student sees it: with the own box as `inbound`.

    Args:
        course: the course's directory in the exchange.

    Returns:
        A directory of links, which lasts as long as the container.
    """
    # The runtime's directory is the user's own, and not on the storage.
    root = Path(os.environ.get("JUPYTER_RUNTIME_DIR", tempfile.gettempdir()), "exchange")
    view = root / course.name
    view.mkdir(parents=True, exist_ok=True)
    for name, target in (
        ("outbound", course / "outbound"),
        ("feedback", course / "feedback"),
        ("inbound", course / "inbound" / get_username()),
    ):
        with suppress(FileExistsError):
            (view / name).symlink_to(target)
    return root


class Submit(ExchangeSubmit):
    """Hands in for the graders alone, all at once."""

    def copy_files(self):
        """Let nbgrader make the submission in a place of its own, and bring it into the box from there.

        nbgrader opens a submission to everybody, and what its author changes the mode of loses the group (the
        setgid bit of chmod(2)). Files that are only made in the box are the graders' by its own setgid bit.
        """
        box = Path(self.inbound_path)
        with (
            tempfile.TemporaryDirectory(prefix="submission-") as stage,
            tempfile.TemporaryDirectory(dir=box) as part,
            self.listed_when_there(),
        ):
            self.inbound_path = stage
            super().copy_files()
            made = Path(part, "submission")
            copy_plain(Path(stage, self.assignment_filename), made)
            open_to_group(made)
            made.rename(box / self.assignment_filename)

    @contextmanager
    def listed_when_there(self):
        """Take what did not get into the box out of nbgrader's cache, by which it lists what is handed in."""
        name = self.assignment_filename
        entry = Path(self.cache_path, name.rsplit("+", 1)[0] if self.add_random_string else name)
        before = entry.exists()
        try:
            yield
        except BaseException:
            if not before:
                shutil.rmtree(entry, ignore_errors=True)
            raise


def open_to_group(directory):
    """Let the group read a directory and what is in it, and others nothing, whatever the umask says.

    Args:
        directory: its path.
    """
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o750 if path.is_dir() else 0o640)


class ReleaseFeedback(ExchangeReleaseFeedback):
    """Releases feedback that students can read, whatever the grader's umask."""

    def copy_files(self):
        """Open the files to those who know their names; to enter the course is the directory's matter."""
        super().copy_files()
        for file in Path(self.dest_path).glob("*.html"):
            found = file.lstat()
            if found.st_uid == os.getuid() and not found.st_mode & stat.S_IROTH:
                file.chmod(0o664)


class Collect(ExchangeCollect):
    """Collects from all boxes what is as it should be."""

    def start(self):
        """Collect by way of a directory of links, as nbgrader wants to find submissions."""
        with (
            alone(self.coursedir, self.log),
            tempfile.TemporaryDirectory(prefix="collect-") as view,
        ):
            self._view = Path(view)
            self.recover_all()
            return super().start()

    def recover_all(self):
        """Bring back what an interrupted collection of the assignment has left half done."""
        places = Path(self.coursedir.format_path(self.coursedir.submitted_directory, ".", "."))
        for student in sorted(places.glob("*")):
            place = self.collected(student.name)
            try:
                if student.is_dir():
                    recover(place)
            except OSError as error:
                self.log.warning("%s cannot be tidied up: %s", place, error)

    def collected(self, student):
        """Where the assignment is collected of a student.

        Args:
            student: name.
        """
        directory, assignment = self.coursedir.submitted_directory, self.coursedir.assignment_id
        return Path(self.coursedir.format_path(directory, student, assignment))

    def init_src(self):
        """Link what is accepted, and let nbgrader choose each student's last one."""
        self._boxes = Path(self.root, self.coursedir.course_id, "inbound")
        if not os.access(self._boxes, os.R_OK | os.X_OK):
            self.fail(f"You don't have read permissions for the directory: {self._boxes}")
        self._inbound = self._view / self.coursedir.course_id / "inbound"
        self._inbound.mkdir(parents=True)
        self._due, self._found = self.due_date(), {}
        for box in sorted(self._boxes.iterdir()):
            self.link_last_of(box)
        self.root = str(self._view)
        super().init_src()

    def link_last_of(self, box):
        """Link what is accepted in a student's box, and tell of the rest why not.

        Args:
            box: the student's box.
        """
        allowance = Allowance(MOST_IN_BOX)
        # The last ones first, for which there has to be enough of it.
        for submission in reversed(self.last_of(box)):
            try:
                self.link(box, submission, allowance)
            except RefusedError as reason:
                self.log.warning("%s is not collected: %s", submission, reason)
            except (OSError, RecursionError) as error:
                self.log.warning("%s is not collected: it cannot be read: %s", submission, error)

    def last_of(self, box):
        """What lies in a student's box for the assignment, and of very much only the last.

        Args:
            box: the student's box.
        """
        found = sorted(box.glob(f"*+{self.coursedir.assignment_id}+*"))
        rest, last = found[:-MOST_SUBMISSIONS], found[-MOST_SUBMISSIONS:]
        if rest:
            self.log.warning(
                "%s has too many submissions: %s are not looked at, only the last %s are",
                *(box.name, len(rest), len(last)),
            )
        return last

    def due_date(self):
        """The assignment's due date, in UTC and without a zone; None if there is none."""
        with Gradebook(self.coursedir.db_url, self.coursedir.course_id) as gradebook:
            try:
                return gradebook.find_assignment(self.coursedir.assignment_id).duedate
            except MissingEntry:
                return None

    def link(self, box, submission, allowance):
        """Link a submission under the time that it counts with, by which nbgrader goes.

        Args:
            box: the student's box.
            submission: what lies in it, whatever a student has made of it.
            allowance: what may still be looked at in the box.

        Raises:
            OSError: it cannot be read.
            RefusedError: it is not to be collected.
        """
        assignment = self.coursedir.assignment_id
        reason = refusal(box, submission, assignment)
        if reason:
            raise RefusedError(reason)
        changed, time = changed_at(submission, allowance), submission.name.rsplit("+", 3)[2]
        late = changed - parse_utc(time)
        if late > TOLERANCE:
            self.log.warning(
                "%s was changed %s after the time in its name, and counts as of then", submission, late
            )
            time = f"{changed.isoformat(sep=' ', timespec='microseconds')} UTC"
        if self._due and changed > self._due and self.has_other(box.name, parse_utc(time)):
            raise RefusedError("it was changed after the due date, and one is collected already")
        # A number instead of the student's random text: no two get the same name.
        name = f"{box.name}+{assignment}+{time}+{len(self._found)}"
        (self._inbound / name).symlink_to(submission)
        self._found[name] = submission, changed

    def has_other(self, student, time):
        """Whether something else is collected of a student than what counts with a time.

        Args:
            student: name.
            time: in UTC and without a zone.
        """
        copy = self.collected(student)
        return copy.is_dir() and self.coursedir.get_existing_timestamp(copy) != time

    def copy_files(self):
        """Take the submissions one by one, so that none is in the way of the others."""
        records, assignment = self.src_records, self.coursedir.assignment_id
        if not records:
            super().copy_files()  # which says so
            return
        course = self.coursedir.course_id
        self.log.info("Processing %s submissions of '%s' for course '%s'", len(records), assignment, course)
        for record in records:
            try:
                if self.is_wanted(record):
                    self.take(record)
                    continue
                reason = "No newer submission to collect"
                if not self.update:
                    reason = "Submission already exists, use --update to update"
                self.log.info("%s: %s %s", reason, record["username"], assignment)
            except (OSError, RuntimeError, RefusedError) as error:
                submission, _ = self._found[record["filename"]]
                self.log.warning("%s is not collected: %s", submission, error)

    def is_wanted(self, record):
        """Whether a submission is to be collected, as nbgrader's own copy_files says it.

        Args:
            record: nbgrader's.
        """
        place, new = self.collected(record["username"]), record["timestamp"]
        if not place.is_dir():
            return True
        existing = self.coursedir.get_existing_timestamp(place)
        if self.update and (existing is None or new > existing):
            return True
        return self.before_duedate and existing != new

    def take(self, record):
        """Collect a submission: all of it, or nothing.

        nbgrader's own copy_files removes what was collected, and copies what takes its place to where it is
        found at once: interrupted, half a submission would be one.

        Args:
            record: nbgrader's.

        Raises:
            OSError: it cannot be read or written.
            RefusedError: it is not what it was when it was checked, or too large.
            RuntimeError: it is too large for nbgrader.
        """
        student, assignment = record["username"], self.coursedir.assignment_id
        place = self.collected(student)
        with tempfile.TemporaryDirectory(prefix="submission-") as stage:
            self.stage(record, Path(stage))
            what = "Updating" if place.is_dir() else "Collecting"
            self.log.info("%s submission: %s %s", what, student, assignment)
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                self.do_copy(str(Path(stage, record["filename"])), str(beside(place, "new")))
                replace(place)
            finally:
                recover(place)

    def stage(self, record, stage):
        """Copy a submission to where no student reaches it.

        nbgrader goes by two files in it, and stops for all when it cannot read one. So the time is that of
        the link, and who hands in no secret gets one that nobody knows.

        Args:
            record: nbgrader's.
            stage: where to.

        Raises:
            OSError: it cannot be read.
            RefusedError: it is not what it was when it was checked, or too large.
        """
        (submission, changed), copied = self._found[record["filename"]], stage / record["filename"]
        descriptor = os.open(submission.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            owner = os.fstat(descriptor).st_uid
            size = 1000 * self.coursedir.max_dir_size  # nbgrader's unit
            copy_plain(submission.name, copied, directory=descriptor, owner=owner, size=size)
        finally:
            os.close(descriptor)
        if changed_at(submission, Allowance(MOST_FILES)) != changed:
            raise RefusedError("it was changed while it was collected")
        write_plain(copied / "timestamp.txt", record["filename"].rsplit("+", 3)[2])
        if not is_secret(copied / "submission_secret.txt"):
            write_plain(copied / "submission_secret.txt", secrets.token_hex(64))


class RefusedError(Exception):
    """A submission that is not copied; the message says why."""


@dataclass
class Allowance:
    """How much may still be looked at, however many submissions it is spread over.

    Attributes:
        left: number of files and directories.
    """

    left: int

    def spend(self):
        """Count one more.

        Raises:
            RefusedError: there is none left.
        """
        if self.left < 1:
            raise RefusedError(NOT_LOOKED_AT)
        self.left -= 1


def beside(place, kind):
    """Where lies what takes the place of something, or what has lost it; nbgrader looks for no such name.

    Args:
        place: the path of what is collected.
        kind: `new`, which is good for nothing until it gets its name, or `old`, which is whole.
    """
    return place.with_name(f".{place.name}.{kind}")


def replace(place):
    """Bring what is whole now to its place.

    Args:
        place: the path of what is collected.

    Raises:
        OSError: it could not be done; `recover` makes the best of it.
    """
    if place.exists():
        place.rename(beside(place, "old"))
    beside(place, "new").rename(place)


def recover(place):
    """Leave one thing at a place, which is whole, wherever a collection has ended.

    Args:
        place: the path of what is collected.

    Raises:
        OSError: that could not be done.
    """
    old, new = beside(place, "old"), beside(place, "new")
    # A list is the storage's word, and what is known of a name may be a minute old: see look_again.
    there = {path.name for path in place.parent.iterdir()}
    if old.name in there and place.name not in there:
        old.rename(place)
    if new.name in there:
        shutil.rmtree(new)
    if {old.name, place.name} <= there:
        # Its name goes first: half of it must not come back when there is nothing at the place one day.
        old.rename(new)
        shutil.rmtree(new)


def refusal(box, submission, assignment):
    """Tell why a submission is not to be collected, as far as that is seen without a look into it.

    Args:
        box: the student's box, whose owner and name are the account service's word.
        submission: what lies in it.
        assignment: name of the assignment.

    Returns:
        The reason, or an empty text.

    Raises:
        OSError: it cannot be read.
    """
    found, owner = submission.lstat(), box.lstat().st_uid
    if not submission.name.startswith(f"{box.name}+"):
        return f"it claims to be somebody else's than {box.name}'s"
    if submission.name.rsplit("+", 3)[:2] != [box.name, assignment] or time_in_name(submission) is None:
        return "it is not called STUDENT+ASSIGNMENT+TIME"
    if not stat.S_ISDIR(found.st_mode):
        return "it is no directory"
    if found.st_uid != owner:
        return f"it belongs to {found.st_uid}, and not to {box.name}"
    return ""


def contents(submission, allowance):
    """Go through all that is in a submission, and no further than it may have it; symlinks are not followed.

    Entries come as they are read, for there may be no end of them in one directory.

    Args:
        submission: its directory.
        allowance: what may be looked at in it and in others.

    Yields:
        An os.DirEntry for each.

    Raises:
        OSError: something cannot be read.
        RefusedError: it has too much in it, or the allowance is spent.
    """
    allowance.spend()
    left, directories = MOST_FILES - 1, [(submission, 0)]  # it is one itself
    while directories:
        directory, depth = directories.pop()
        if depth > MOST_DEPTH:
            raise RefusedError(TOO_MANY)
        with os.scandir(directory) as entries:
            for entry in entries:
                left -= 1
                if left < 0:
                    raise RefusedError(TOO_MANY)
                allowance.spend()
                if entry.is_dir(follow_symlinks=False):
                    directories.append((entry.path, depth + 1))
                yield entry


def time_in_name(submission):
    """The time in a submission's name, in UTC and without a zone as nbgrader has it; None if there is none.

    Args:
        submission: its path, called STUDENT+ASSIGNMENT+TIME+RANDOM.
    """
    try:
        return parse_utc(submission.name.rsplit("+", 3)[2])
    except (IndexError, OverflowError, TypeError, ValueError):
        return None


def changed_at(submission, allowance):
    """When a submission of files and directories was changed last, by the storage's clock.

    The time in the name is the student's word; the status change time (inode(7)) is not.

    Args:
        submission: its directory.
        allowance: what may be looked at in it and in others.

    Returns:
        The time in UTC and without a zone, as nbgrader has it.

    Raises:
        OSError: something cannot be read.
        RefusedError: it has something else or too much in it, or the allowance is spent.
    """
    changed = submission.lstat().st_ctime
    for entry in contents(submission, allowance):
        if not entry.is_dir(follow_symlinks=False) and not entry.is_file(follow_symlinks=False):
            raise RefusedError(f"{entry.name!r} in it is neither a file nor a directory")
        changed = max(changed, entry.stat(follow_symlinks=False).st_ctime)
    return datetime.fromtimestamp(changed, UTC).replace(tzinfo=None)


def is_secret(file):
    """Whether a file holds a secret as nbgrader makes it, which is a name's part of the feedback.

    Args:
        file: a file that need not be there.
    """
    try:
        return re.fullmatch(r"[0-9a-f]{32,256}", file.read_text().strip()) is not None
    except (OSError, ValueError):
        return False


def write_plain(file, text):
    """Write a file in the place of whatever a student has handed in under its name.

    Args:
        file: its path.
        text: its content.
    """
    if file.is_dir():
        shutil.rmtree(file)
    file.write_text(text)


def raise_it(error):
    """What os.walk calls with an error that it would swallow."""
    raise error


def copy_plain(source, destination, directory=None, owner=None, size=None):
    """Copy a tree without ever following a symlink, and without anything but directories and files.

    Args:
        source: the directory to copy.
        destination: where to; not there yet.
        directory: descriptor of the directory in which the source is; None if the source is a path.
        owner: UID of which everything has to be; None: of any.
        size: most bytes of all files together; None: no limit.

    Raises:
        OSError: something cannot be read.
        RefusedError: there is no such directory, it is not the owner's, or too large.
    """
    left, files_left = size, MOST_FILES
    # fwalk holds each directory open, so that none can be exchanged on the way.
    walk = os.fwalk(source, onerror=raise_it, follow_symlinks=False, dir_fd=directory)
    for place, _, files, descriptor in walk:
        inner = Path(place).relative_to(source)
        files_left -= 1 + len(files)
        if len(inner.parts) > MOST_DEPTH or files_left < 0:
            raise RefusedError(TOO_MANY)
        check_owner(descriptor, owner)
        (destination / inner).mkdir()
        for name in files:
            with open_plain(name, descriptor) as content:
                if content is None:
                    continue
                check_owner(content.fileno(), owner)
                data = content.read() if left is None else content.read(left + 1)
                if left is not None:
                    left -= len(data)
                    if left < 0:
                        raise RefusedError("it is too large")
                (destination / inner / name).write_bytes(data)
    if not destination.is_dir():
        raise RefusedError("it is no directory any more")


def check_owner(descriptor, owner):
    """Refuse what is not somebody's.

    Args:
        descriptor: of a file or directory.
        owner: the UID; None for any.

    Raises:
        RefusedError: it is not.
    """
    found = os.fstat(descriptor).st_uid
    if owner is not None and found != owner:
        raise RefusedError(f"something in it belongs to {found}")


@contextmanager
def open_plain(name, directory):
    """Open a file for reading, and give None if it is a link, or anything else that is no plain file.

    Args:
        name: its name.
        directory: descriptor of its directory.
    """
    try:
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        yield None
        return
    with os.fdopen(handle, "rb") as content:
        yield content if stat.S_ISREG(os.fstat(handle).st_mode) else None


class SandboxedKernelManager(AsyncKernelManager):
    """Starts kernels that have nothing of the grader's: see campus-sandbox."""

    def __init__(self, **kwargs):
        """Make the one directory that the kernel may write."""
        super().__init__(**kwargs)
        self._scratch = tempfile.TemporaryDirectory(prefix="autograde-", ignore_cleanup_errors=True)
        # Sockets in that directory: from outside they are reached, and from inside nothing is.
        self.transport = "ipc"
        self.ip = str(Path(self._scratch.name, "kernel"))
        self.connection_file = str(Path(self._scratch.name, "kernel.json"))
        # Jupyter calls them kernel-1 …, and kernels that know of TCP only (R, Java) make kernel:1 … of it.
        for number in range(1, 6):
            Path(f"{self.ip}-{number}").symlink_to(f"kernel:{number}")

    async def _async_pre_start_kernel(self, **kwargs):
        """Start in a copy, with an environment that has no tokens and no passwords in it.

        Raises:
            RuntimeError: such a kernel cannot run there.

        In the directory itself the code could put links in the place of what nbgrader writes and copies there
        afterwards, with the grader's rights.
        """
        if self.kernel_name in NOT_RUN:
            reason = NOT_RUN[self.kernel_name]
            raise RuntimeError(f"a notebook for {self.kernel_name!r} cannot be autograded: {reason}")
        scratch = self._scratch.name
        work = Path(scratch, "work")
        if "cwd" in kwargs and not work.exists():
            copy_plain(kwargs["cwd"], work)
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        kwargs["env"] = {**kept, "HOME": scratch, "TMPDIR": scratch, "IPYTHONDIR": scratch, "USER": "nobody"}
        kwargs["cwd"] = str(work) if work.is_dir() else scratch
        return await super()._async_pre_start_kernel(**kwargs)

    pre_start_kernel = _async_pre_start_kernel

    def format_kernel_cmd(self, extra_arguments=None):
        """Put the sandbox in front of the kernel's command."""
        return [SANDBOX, *super().format_kernel_cmd(extra_arguments)]

    async def _async_cleanup_resources(self, restart=False):
        """End what the kernel has left running, and remove the directory with it."""
        await super()._async_cleanup_resources(restart)
        if not restart:
            end_orphans()
            self._scratch.cleanup()

    cleanup_resources = _async_cleanup_resources


def end_orphans():
    """End processes that came out of a sandbox and have outlived their kernel.

    A process in the sandbox has more seccomp filters than this one, and cannot get rid of them. What is not
    below a kernel any more is below the container's first process.
    """
    own = seccomp_filters("self")
    for _ in range(100):  # while one is ended another may be made
        inside = {
            entry.name: parent
            for entry in Path("/proc").glob("[0-9]*")
            if seccomp_filters(entry.name) > own and (parent := status_of(entry.name).get("PPid"))
        }
        orphans = [process for process in inside if top_parent(process, inside) == "1"]
        if not orphans:
            return
        for process in orphans:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(int(process), signal.SIGKILL)


def top_parent(process, parents):
    """The first process above one that is not among those with known parents.

    Args:
        process: its ID, as text.
        parents: ID of the parent of each.
    """
    while process in parents:
        process = parents[process]
    return process


def seccomp_filters(process):
    """How many seccomp filters a process has; 0 if it is gone, or the kernel does not tell (before 5.9).

    Args:
        process: its ID, as text.
    """
    return int(status_of(process).get("Seccomp_filters", 0))


def status_of(process):
    """What the kernel says of a process (proc_pid_status(5)).

    Args:
        process: its ID, as text.
    """
    try:
        lines = Path("/proc", process, "status").read_text().splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
