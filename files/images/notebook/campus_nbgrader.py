"""nbgrader for a course whose exchange lies on NFS, with real owners and among students who try things.

nbgrader's own exchange is one directory that everybody may write into, where a submission is readable to all
who guess its name, and belongs to whoever it says it belongs to. Here each student has a box for submissions
(files/accounts.py makes it), which is the student's and the graders' by its group:

- students see their box as the exchange's `inbound`, and nbgrader's own commands hand in there,
- collecting looks into all boxes, and takes what is its owner's, and plain files only: a symlink would be
  read with the rights of the grader,
- autograding runs the student's code in a sandbox, without network and without the grader's files.

The hub says in the environment which course a server is for (files/courses.py).
"""

import os
import re
import secrets
import shutil
import stat
import tempfile
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from jupyter_client.manager import AsyncKernelManager
from nbgrader.exchange.default import ExchangeCollect, ExchangeReleaseFeedback, ExchangeSubmit
from nbgrader.utils import get_username, parse_utc

SANDBOX = "/usr/local/bin/campus-sandbox"
# What a student may be late by the storage's clock without a word: copying takes its time, clocks differ.
TOLERANCE = timedelta(minutes=10)
# What of a grader's environment student code gets, too.
KEPT = ("LANG", "LC_ALL", "PATH", "TZ", "VIRTUAL_ENV")


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
    c.ExchangeFactory.submit = Submit
    if os.environ.get("CAMPUS_COURSE_ROLE") != "grader":
        c.Exchange.root = str(student_view(Path(exchange, course)))
        return
    c.Exchange.root = exchange
    c.ExchangeFactory.collect = Collect
    # By name nobody is known in the container; Collect goes by the boxes' owners instead.
    c.ExchangeCollect.check_owner = False
    c.ExchangeFactory.release_feedback = ReleaseFeedback
    c.CourseDirectory.root = str(Path.home() / "courses" / course / "grading")
    if os.environ.get("CAMPUS_GRADEBOOK"):
        c.CourseDirectory.db_url = os.environ["CAMPUS_GRADEBOOK"]
    c.Execute.kernel_manager_class = SandboxedKernelManager
    # What students wrote is shown to graders, and to themselves, on the hub's own site.
    c.HTMLExporter.sanitize_html = True


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
        ):
            self.inbound_path = stage
            super().copy_files()
            made = Path(part, "submission")
            copy_plain(Path(stage, self.assignment_filename), made)
            made.rename(box / self.assignment_filename)


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
        with tempfile.TemporaryDirectory(prefix="collect-") as view:
            self._view = Path(view)
            return super().start()

    def init_src(self):
        """Link what is accepted, and let nbgrader choose."""
        boxes = Path(self.root, self.coursedir.course_id, "inbound")
        if not os.access(boxes, os.R_OK | os.X_OK):
            self.fail(f"You don't have read permissions for the directory: {boxes}")
        inbound = self._view / self.coursedir.course_id / "inbound"
        inbound.mkdir(parents=True)
        for box in sorted(boxes.iterdir()):
            for submission in sorted(box.glob(f"*+{self.coursedir.assignment_id}+*")):
                reason = refusal(box, submission)
                if reason:
                    self.log.warning("%s is not collected: %s", submission, reason)
                    continue
                late = changed_after(submission)
                if late > TOLERANCE:
                    self.log.warning("%s was changed %s after the time in its name", submission, late)
                (inbound / submission.name).symlink_to(submission)
        self.root = str(self._view)
        super().init_src()

    def do_copy(self, src, dest, log=None):
        """Copy plain files only: what was checked may have been exchanged for a symlink since.

        nbgrader goes by two files that are the student's, and stops for all when it cannot read one. So the
        time is that of the name, which was checked, and who hands in no secret gets one that nobody knows.
        """
        with tempfile.TemporaryDirectory(prefix="submission-") as stage:
            copied = Path(stage, "submission")
            copy_plain(Path(src).resolve(), copied)
            write_plain(copied / "timestamp.txt", Path(src).name.rsplit("+", 3)[2])
            if not is_secret(copied / "submission_secret.txt"):
                write_plain(copied / "submission_secret.txt", secrets.token_hex(64))
            super().do_copy(copied, dest, log)


def refusal(box, submission):
    """Tell why a submission is not to be collected.

    Args:
        box: the student's box, whose owner and name are the account service's word.
        submission: what lies in it.

    Returns:
        The reason, or an empty text.
    """
    found, owner = submission.lstat(), box.lstat().st_uid
    if not submission.name.startswith(f"{box.name}+"):
        return f"it claims to be somebody else's than {box.name}'s"
    if time_in_name(submission) is None:
        return "there is no time in its name"
    if not stat.S_ISDIR(found.st_mode):
        return "it is no directory"
    if found.st_uid != owner:
        return f"it belongs to {found.st_uid}, and not to {box.name}"
    for directory, names, files in os.walk(submission):
        for name in (*names, *files):
            mode = Path(directory, name).lstat().st_mode
            if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
                return f"{name!r} in it is neither a file nor a directory"
    return ""


def time_in_name(submission):
    """The time in a submission's name, in UTC and without a zone as nbgrader has it; None if there is none.

    Args:
        submission: its path, called STUDENT+ASSIGNMENT+TIME+RANDOM.
    """
    try:
        return parse_utc(submission.name.rsplit("+", 3)[2])
    except (IndexError, OverflowError, TypeError, ValueError):
        return None


def changed_after(submission):
    """How long after the time in its name a submission was changed last, by the storage's clock.

    The name is the student's word, and deadlines go by it; the status change time (inode(7)) is not.

    Args:
        submission: its directory.
    """
    files = [submission, *(path for path in submission.rglob("*") if path.is_file())]
    changed = max(path.lstat().st_ctime for path in files)
    return datetime.fromtimestamp(changed, UTC) - time_in_name(submission).replace(tzinfo=UTC)


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


def copy_plain(source, destination):
    """Copy a tree without ever following a symlink, and without anything but directories and files.

    Args:
        source: the directory to copy.
        destination: where to; not there yet.
    """
    # fwalk holds each directory open, so that none can be exchanged on the way.
    for directory, _, files, descriptor in os.fwalk(source, follow_symlinks=False):
        target = destination / Path(directory).relative_to(source)
        target.mkdir()
        for name in files:
            with suppress(OSError):
                handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=descriptor)
                with os.fdopen(handle, "rb") as content:
                    if stat.S_ISREG(os.fstat(handle).st_mode):
                        with (target / name).open("xb") as copy:
                            shutil.copyfileobj(content, copy)


class SandboxedKernelManager(AsyncKernelManager):
    """Starts kernels that have nothing of the grader's: see campus-sandbox."""

    def __init__(self, **kwargs):
        """Make the one directory besides the submission's that the kernel may write."""
        super().__init__(**kwargs)
        self._scratch = tempfile.TemporaryDirectory(prefix="autograde-")
        # Sockets in that directory: from outside they are reached, and from inside nothing is.
        self.transport = "ipc"
        self.ip = str(Path(self._scratch.name, "kernel"))
        self.connection_file = str(Path(self._scratch.name, "kernel.json"))

    async def _async_pre_start_kernel(self, **kwargs):
        """Start with an environment that has no tokens and no passwords in it."""
        scratch = self._scratch.name
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        kwargs["env"] = {**kept, "HOME": scratch, "TMPDIR": scratch, "IPYTHONDIR": scratch, "USER": "nobody"}
        return await super()._async_pre_start_kernel(**kwargs)

    pre_start_kernel = _async_pre_start_kernel

    def format_kernel_cmd(self, extra_arguments=None):
        """Put the sandbox in front of the kernel's command."""
        return [SANDBOX, *super().format_kernel_cmd(extra_arguments)]

    async def _async_cleanup_resources(self, restart=False):
        """Remove the directory with the kernel."""
        await super()._async_cleanup_resources(restart)
        if not restart:
            self._scratch.cleanup()

    cleanup_resources = _async_cleanup_resources
