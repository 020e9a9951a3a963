"""Courses: who gets which, real rights on folders, and nbgrader's round among students who try things."""

from __future__ import annotations

import html
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grading
import pytest
from cluster import Cluster, wait_for
from hub import STOP_TIMEOUT, HubUser
from playwright.sync_api import FrameLocator, Locator, Page, expect

pytestmark = pytest.mark.two_nodes

MINUTE = 60_000

Users = Callable[[str], HubUser]

# Code that is handed in as a solution, and tries what student code must not: each line says what came of it.
ATTACK = """
import glob, os, resource, socket, subprocess
from IPython.display import HTML, Markdown, display
def double(x):
    return 2 * x
def tried(what, attempt):
    try:
        print("ATTACK", what, "worked:", repr(attempt())[:200])
    except BaseException as error:
        print("ATTACK", what, "failed:", type(error).__name__)
def read(path):
    try:
        return open(path).read()
    except OSError:
        return ""
def others():
    return [path for path in glob.glob("/proc/[0-9]*/environ") if "GRADEBOOK" in read(path)][0]
grading = "/srv/courses/algo1/grading"
tried("home", lambda: os.listdir("{home}"))
tried("submitted", lambda: os.listdir(grading + "/submitted"))
tried("source", lambda: open(grading + "/source/ps1/ps1.ipynb").read())
tried("exchange", lambda: os.listdir("/srv/nbgrader/exchange/algo1/inbound"))
tried("environment", lambda: os.environ["CAMPUS_GRADEBOOK"])
tried("token", lambda: os.environ["JUPYTERHUB_API_TOKEN"])
tried("others", others)
tried("gradebook", lambda: socket.create_connection(("{gradebook}", 5432), 3))
tried("hub", lambda: socket.create_connection(("{hub}", 8081), 3))
tried("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
tried("listen", lambda: socket.create_server(("0.0.0.0", 5555)))
tried("signal", lambda: os.kill(os.getppid(), 0))
tried("limit", lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (9999, 9999)))
tried("priority", lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 19))
tried("write", lambda: open(grading + "/written", "w"))
tried("scratch", lambda: open(os.environ["TMPDIR"] + "/own", "w").write("x"))
tried("link", lambda: (os.remove("ps1.ipynb"), os.symlink(grading + "/source/ps1/ps1.ipynb", "ps1.ipynb")))
tried("leak", lambda: os.symlink(grading + "/source/ps1/ps1.ipynb", "leak.html"))
tried("orphan", lambda: subprocess.Popen(["setsid", "sleep", "98765"]))
display(HTML("<b>bold</b><img src=x onerror=EVIL>"), Markdown("<script>EVIL</script> *it*"))
"""
# What works in a directory that nobody looks into afterwards, and is ended with the kernel.
HARMLESS = {"scratch", "link", "leak", "orphan"}
# What the kernel's own filter refuses, and not a name that cannot be resolved.
FILTERED = {"gradebook", "hub", "udp", "listen", "signal", "limit", "priority"}


@pytest.fixture(scope="module")
def member(user: Users) -> Iterator[Callable[[str, str], HubUser]]:
    """Members of courses by name and course, with a server for it; all servers are stopped at the end."""
    known: dict[str, tuple[str, HubUser]] = {}

    def get(name: str, course: str) -> HubUser:
        at, one = known.get(name, ("", user(name)))
        if at != course:
            one.stop()
            one.spawn({"course": course})
            known[name] = course, one
        return one

    yield get
    for _, one in known.values():
        one.stop()


@pytest.fixture(scope="module")
def released(member: Callable[[str, str], HubUser]) -> HubUser:
    """A grader of algo1 who has released the assignment ps1."""
    gina = member("gina", "algo1")
    grading.write_assignment(gina, "algo1", "ps1")
    grading.nbgrader(gina, "algo1", "generate_assignment ps1 --force", "release_assignment ps1 --force")
    return gina


@pytest.fixture(scope="module")
def handed_in(member: Callable[[str, str], HubUser], released: HubUser) -> list[HubUser]:
    """Students of algo1 who have handed in, the second with a wrong solution."""
    students = [member("anna", "algo1"), member("ben", "algo1")]
    for student, solution in zip(students, (grading.RIGHT, grading.WRONG), strict=True):
        student.shell("cd && rm -rf algo1/ps1 && nbgrader fetch_assignment ps1")
        assert "HIDDEN" not in student.shell("cat ~/algo1/ps1/ps1.ipynb")
        grading.solve(student, "ps1", solution)
        student.shell("cd && nbgrader submit ps1")
    return students


def environment(one: HubUser) -> dict[str, str]:
    """The environment of somebody's server."""
    return one.json("import json, os; print(json.dumps(dict(os.environ)))")


# --- the start page ---


def test_who_is_in_several_courses_is_asked(user: Users) -> None:
    """With title, image and resources; not who is in one, and no course that is over is offered."""
    chris = user("chris")
    chris.stop()
    page = chris.get("/hub/spawn").text
    offered = re.findall(r'name="course"[^>]*value="([^"]*)"', page)
    assert offered == ["algo1", "db1", ""]
    text = html.unescape(re.sub(r"<[^>]+>", " ", page))
    assert "Algorithms <1>" in text
    assert "Image notebook. Kernels: python, bash. Memory 448M. 1 CPU." in " ".join(text.split())

    def answer(course: str) -> str:
        form = {"course": course, "_xsrf": chris.session.cookies.get("_xsrf", path="/hub/")}
        return chris.session.post(f"{chris.url}/hub/spawn/chris", data=form, timeout=60).text

    assert "You are not in this course, or it is closed." in answer("past")
    answer("db1")
    chris.follow_progress()
    assert environment(chris)["CAMPUS_COURSE"] == "db1"
    chris.stop()


def test_who_is_in_one_course_is_not_asked(user: Users) -> None:
    """The course has its limits; dora's other course is over."""
    dora = user("dora")
    dora.stop()
    answer = dora.get("/hub/spawn", allow_redirects=False)
    assert (answer.status_code, "spawn-pending" in answer.headers["Location"]) == (302, True)
    dora.follow_progress()
    assert environment(dora)["CAMPUS_COURSE"] == "db1"
    dora.stop()
    # neither one that is over nor another's is to be had by asking for it
    for other in ("past", "algo1"):
        dora.spawn({"course": other})
        assert environment(dora)["CAMPUS_COURSE"] == "db1"
        dora.stop()


def test_a_server_that_is_called_like_a_course_is_its_server(cluster: Cluster, user: Users) -> None:
    """Beside the user's own, without a question."""
    chris = user("chris")
    chris.stop()
    path = "/hub/api/users/chris/servers/db1"
    chris.api("POST", path).raise_for_status()
    wait_for("the server", lambda: chris.model()["servers"].get("db1", {}).get("ready"), timeout=120)
    containers = [service["Spec"]["TaskTemplate"]["ContainerSpec"] for service in cluster.services()]
    (settings,) = [
        container["Env"] for container in containers if "JUPYTERHUB_USER=chris" in container.get("Env", [])
    ]
    assert {"JUPYTERHUB_SERVER_NAME=db1", "CAMPUS_COURSE=db1"} <= set(settings)
    chris.api("DELETE", path, json={"remove": True}, timeout=STOP_TIMEOUT).raise_for_status()
    wait_for("its end", lambda: "db1" not in chris.model()["servers"], timeout=STOP_TIMEOUT)


def test_administrators_see_who_is_in_which_course(user: Users) -> None:
    """As groups of the hub, with their members as far as they have logged in."""
    for name in ("anna", "gus", "chris"):
        user(name)
    groups = {group["name"]: group["users"] for group in user("tina").api("GET", "/hub/api/groups").json()}
    assert {"anna", "chris"} <= set(groups["nbgrader-algo1"])
    assert "gus" in groups["formgrade-algo1"]
    assert "gus" in groups["formgrade-db1"]


def test_a_course_offers_its_own_kernels(member: Callable[[str, str], HubUser]) -> None:
    """The image has others, too, and db1 says nothing of kernels."""
    anna, emil = member("anna", "algo1"), member("emil", "db1")
    assert set(anna.notebook_api("GET", "kernelspecs").json()["kernelspecs"]) == {"python3", "bash"}
    assert {"python3", "bash", "ir"} < set(emil.notebook_api("GET", "kernelspecs").json()["kernelspecs"])


# --- folders ---


def test_graders_write_material_and_students_read_it(
    cluster: Cluster, member: Callable[[str, str], HubUser]
) -> None:
    """Files of all members, under their own UIDs, whatever the umask."""
    gina, anna, ben = (member(name, "algo1") for name in ("gina", "anna", "ben"))
    gina.shell(
        "mkdir -p ~/courses/algo1/material/week1 && echo text > ~/courses/algo1/material/week1/notes.txt"
    )
    assert anna.shell("cat ~/courses/algo1/material/week1/notes.txt").strip() == "text"
    with pytest.raises(AssertionError, match="Read-only file system"):
        anna.shell("echo mine > ~/courses/algo1/material/week1/notes.txt")

    anna.shell("echo ours > ~/courses/algo1/shared/list.txt")
    ben.shell("echo more >> ~/courses/algo1/shared/list.txt")
    assert gina.shell("cat ~/courses/algo1/shared/list.txt").split() == ["ours", "more"]
    _, account = cluster.accounts("GET", "/accounts/anna")
    file = cluster.storage.stat(f"{cluster.storage_dir}/courses/algo1/shared/list.txt")
    assert (file["uid"], file["gid"]) == (account["uid"], account["groups"]["course-algo1"])


def test_students_of_another_course_see_nothing(
    cluster: Cluster, member: Callable[[str, str], HubUser], released: HubUser
) -> None:
    """Neither in their server, nor on the storage under their UID and groups."""
    emil = member("emil", "db1")
    assert emil.shell("ls /srv/courses /srv/nbgrader/exchange").split() == [
        *("/srv/courses:", "db1"),
        *("/srv/nbgrader/exchange:", "db1"),
    ]
    assert "algo1" not in emil.shell("cd && nbgrader list --course algo1")
    _, account = cluster.accounts("GET", "/accounts/emil")
    for path in ("exchange/algo1", "courses/algo1/material", "courses/algo1/grading", "courses/algo1/shared"):
        assert listed_as(cluster, account, path) is None
    assert listed_as(cluster, account, "exchange/db1") is not None


def test_a_quota_holds_for_students(cluster: Cluster, member: Callable[[str, str], HubUser]) -> None:
    """Whoever has reached it starts and deletes; graders collect what others have written, and have none."""
    ben, gina = member("ben", "algo1"), member("gina", "algo1")
    fill = "mkdir -p ~/data && dd if=/dev/zero of=$HOME/data/big bs=1M count={} conv=fsync"
    with pytest.raises(AssertionError, match="Disk quota exceeded"):
        ben.shell(fill.format(100))
    _, account = cluster.accounts("GET", "/accounts/ben")
    blocks = cluster.storage.run("stat", "--format=%b", f"{cluster.storage_dir}{account['home']}/data/big")
    assert int(blocks) * 512 <= 64 * 2**20
    ben.stop()
    # There the file system is the containers' as well, so that the quota leaves nothing in them either.
    main = {"placement_constraints": ["node.labels.campus.storage==true"]}
    ben.spawn({"course": "algo1", "traits": main})
    with pytest.raises(AssertionError, match="Disk quota exceeded"):
        ben.shell(fill.replace("big", "more").format(1))
    assert ben.notebook_api("DELETE", "contents/data").status_code == 204
    ben.shell("echo again > ~/more && grep again ~/more && rm ~/more")
    gina.shell(f"{fill.format(80)} && rm -r ~/data")


def listed_as(cluster: Cluster, account: dict, path: str) -> list[str] | None:
    """What a directory of the storage shows to an account, None if it is closed.

    As the NFS server sees it, which asks the disk under the account's UID and groups.
    """
    groups = ",".join(str(gid) for gid in account["groups"].values())
    who = ("setpriv", f"--reuid={account['uid']}", f"--regid={account['gid']}", f"--groups={groups}")
    script = 'ls -A "$1" 2>/dev/null || echo "(closed)"'
    container = ("docker", "exec", cluster.nfs_container, *who)
    out = cluster.storage.run(*container, "sh", "-c", script, "sh", f"/export/{path}").split("\n")
    return None if "(closed)" in out else [line for line in out if line]


# --- nbgrader ---


def test_a_submission_is_its_authors_and_the_graders(cluster: Cluster, handed_in: list[HubUser]) -> None:
    """Real owners, the graders' group, nothing for others; and in the server no way to another's."""
    anna, ben = handed_in
    _, account = cluster.accounts("GET", "/accounts/anna")
    _, grader = cluster.accounts("GET", "/accounts/gina")
    inbound = f"{cluster.storage_dir}/exchange/algo1/inbound"
    files = cluster.storage.run("find", f"{inbound}/anna", "-printf", "%U %G %m %y\n").splitlines()
    assert len(files) >= 5
    for line in files:
        uid, gid, mode, _ = line.split()
        assert (int(uid), int(gid)) == (account["uid"], grader["groups"]["formgrade-algo1"])
        assert mode.endswith("0")
    assert not cluster.storage.run("find", inbound, "-perm", "-o+w", "-not", "-type", "l")
    bens = next(name for name in grading.submissions(ben) if name.startswith("ben+ps1+"))
    for attempt in (
        "ls $E/inbound",
        "ls $E/inbound/ben",
        f"echo mine > '$E/inbound/ben/{bens}/ps1.ipynb'",
        f"rm -r '$E/inbound/ben/{bens}'",
        "ls $E/feedback",
        "touch $E/outbound/mine",
        "ls /srv/courses/algo1/grading",
    ):
        with pytest.raises(AssertionError, match=r"Permission denied|No such file"):
            anna.shell(attempt.replace("$E", "/srv/nbgrader/exchange/algo1"))
    assert bens in grading.submissions(ben)


def test_graders_read_what_was_handed_in_with_any_umask(
    member: Callable[[str, str], HubUser], released: HubUser
) -> None:
    """Also with one that leaves the group nothing."""
    chris = member("chris", "algo1")
    chris.shell("cd && rm -rf algo1/ps1 && nbgrader fetch_assignment ps1")
    known = set(grading.submissions(chris))
    chris.shell("cd && umask 077 && nbgrader submit ps1")
    (name,) = set(grading.submissions(chris)) - known
    found = f"/srv/nbgrader/exchange/algo1/inbound/chris/{name}"
    assert "double" in released.shell(f"cat '{found}/ps1.ipynb'")


def test_courses_with_an_assignment_of_the_same_name(member: Callable[[str, str], HubUser]) -> None:
    """Each has its own of it: in the home of who is in both, and in the boxes."""
    name = f"same-{uuid.uuid4().hex[:6]}"
    work = {"algo1": (member("gina", "algo1"), grading.RIGHT), "db1": (member("hana", "db1"), grading.WRONG)}
    for course, (grader, solution) in work.items():
        grading.write_assignment(grader, course, name)
        grading.nbgrader(grader, course, f"generate_assignment {name}", f"release_assignment {name}")
        chris = member("chris", course)
        chris.shell(f"cd && nbgrader fetch_assignment {name}")
        grading.solve(chris, name, solution)
        chris.shell(f"cd && nbgrader submit {name}")
        assert len([one for one in grading.submissions(chris) if one.startswith(f"chris+{name}+")]) == 1
    for course, (grader, solution) in work.items():
        box = f"/srv/nbgrader/exchange/{course}/inbound/chris"
        for notebook in (
            chris.shell(f"cat ~/{course}/{name}/{name}.ipynb"),
            grader.shell(f"cat {box}/chris+{name}+*/{name}.ipynb"),
        ):
            assert json.loads(notebook)["cells"][0]["source"] == solution


def test_the_gradebook_is_closed_to_students(
    member: Callable[[str, str], HubUser], handed_in: list[HubUser]
) -> None:
    """They are not on its network; a grader's password is that of one gradebook, and nobody needs none."""
    anna, gina = handed_in[0], member("gina", "algo1")
    assert "CAMPUS_GRADEBOOK" not in environment(anna)
    url = environment(gina)["CAMPUS_GRADEBOOK"].replace("+psycopg2", "")
    address = gina.run("import socket; print(socket.gethostbyname('gradebook'))").strip()
    connect = "import psycopg2; print(psycopg2.connect({!r}, connect_timeout=5).info.dbname)"
    assert gina.run(connect.format(url)).strip() == "algo1"
    # With the right password: who reached it would be in. By its address they may reach anybody else.
    for host in ("gradebook", address):
        with pytest.raises(AssertionError, match="OperationalError"):
            anna.run(connect.format(url.replace("@gradebook", f"@{host}")))
    for other, refusal in (
        (url.removesuffix("algo1") + "db1", "no pg_hba.conf entry"),
        ("postgresql://algo1@gradebook/algo1", "no password supplied"),
        ("postgresql://postgres@gradebook/postgres", "no password supplied"),
    ):
        with pytest.raises(AssertionError, match=refusal):
            gina.run(connect.format(other))


def test_the_whole_round(member: Callable[[str, str], HubUser], handed_in: list[HubUser]) -> None:
    """Collect by one grader, autograde and feedback by another, fetched by the student."""
    anna, ben = handed_in
    gina, gus = member("gina", "algo1"), member("gus", "algo1")
    grading.nbgrader(gina, "algo1", "collect ps1 --update")
    grade = ("autograde ps1 --force", "generate_feedback ps1 --force", "release_feedback ps1")
    grading.nbgrader(gus, "algo1", *grade)
    assert {name: grading.scores(gus, "algo1", "ps1")[name] for name in ("anna", "ben")} == {
        "anna": 2,
        "ben": 0,
    }

    # what is wrong is told, but not by which hidden test; graders still have it
    for student, score, error in ((anna, 2.0, False), (ben, 0.0, True)):
        student.shell("cd && nbgrader fetch_feedback ps1")
        file = f"~/courses/algo1/grading/feedback/{student.name}/ps1/ps1.html"
        for page in (student.shell("cat ~/algo1/ps1/feedback/*/ps1.html"), gus.shell(f"cat {file}")):
            feedback = html.unescape(re.sub(r"<[^>]+>", "", page))
            assert f"Score: {score} / 2.0" in feedback
            assert "assert double(2) == 4" in feedback
            assert ("AssertionError" in feedback) == error
            assert "HIDDEN" not in feedback
            assert "double(21)" not in feedback
    assert "double(21)" in gus.shell("cat ~/courses/algo1/grading/autograded/ben/ps1/ps1.ipynb")

    # the other grader does it again over the first one's files
    grading.nbgrader(gina, "algo1", *grade)
    assert grading.scores(gina, "algo1", "ps1")["anna"] == 2
    fetched = ben.shell("cd && nbgrader fetch_feedback ps1 && ls ~/algo1/ps1/feedback/*/")
    assert fetched.split()[-1] == "ps1.html"


def test_several_graders_grade_at_once(
    member: Callable[[str, str], HubUser], handed_in: list[HubUser]
) -> None:
    """Different students of one assignment, into one gradebook."""
    gina, gus = member("gina", "algo1"), member("gus", "algo1")
    grading.nbgrader(gina, "algo1", "collect ps1 --update")
    with ThreadPoolExecutor() as pool:
        runs = [
            pool.submit(grading.nbgrader, grader, "algo1", f"autograde ps1 --student={student} --force")
            for grader, student in ((gina, "anna"), (gus, "ben"))
        ]
        for run in runs:
            run.result()
    scores = grading.scores(gina, "algo1", "ps1")
    assert (scores["anna"], scores["ben"]) == (2, 0)
    assert grading.scores(gus, "algo1", "ps1") == scores


def test_who_grades_the_same_students_waits(
    cluster: Cluster, member: Callable[[str, str], HubUser], handed_in: list[HubUser]
) -> None:
    """All of one assignment, by two graders at once: neither removes what the other one is at."""
    gina, gus = member("gina", "algo1"), member("gus", "algo1")
    grading.nbgrader(gina, "algo1", "collect ps1 --update")
    with ThreadPoolExecutor() as pool:
        runs = [
            pool.submit(grading.nbgrader, grader, "algo1", "autograde ps1 --force") for grader in (gina, gus)
        ]
        said = [run.result() for run in runs]
    assert "Another grader collects or grades; waiting ..." in "".join(said)
    scores = grading.scores(gina, "algo1", "ps1")
    assert (scores["anna"], scores["ben"]) == (2, 0)
    place = f"{cluster.storage_dir}/courses/algo1/grading"
    for student in ("anna", "ben"):
        graded = json.loads(cluster.storage.run("cat", f"{place}/autograded/{student}/ps1/ps1.ipynb"))
        assert all(cell["execution_count"] for cell in graded["cells"])
    _, grader = cluster.accounts("GET", "/accounts/gina")
    lock = cluster.storage.stat(f"{place}/.campus-lock")
    assert (lock["gid"], lock["mode"]) == (grader["groups"]["formgrade-algo1"], "660")


def test_nothing_takes_the_place_of_what_is_collected_after_the_due_date(
    cluster: Cluster, member: Callable[[str, str], HubUser]
) -> None:
    """Not even what claims to be of before; and a first one that does so is collected, as late as it is."""
    gina, anna, ben = (member(name, "algo1") for name in ("gina", "anna", "ben"))
    name = f"due-{uuid.uuid4().hex[:6]}"
    grading.write_assignment(gina, "algo1", name)
    grading.nbgrader(gina, "algo1", f"generate_assignment {name}", f"release_assignment {name}")
    anna.shell(f"cd && nbgrader fetch_assignment {name} && nbgrader submit {name}")
    # the nodes' clocks and the storage's may differ a little
    time.sleep(3)
    due = gina.shell("date -u '+%F %T UTC'").strip()
    grading.nbgrader(gina, "algo1", f"db assignment add {name} --duedate='{due}'", f"collect {name}")
    submitted = f"{cluster.storage_dir}/courses/algo1/grading/submitted"
    collected = f"{submitted}/anna/{name}/{name}.ipynb"
    before = cluster.storage.run("sha256sum", collected)

    time.sleep(3)
    grading.solve(anna, name, grading.RIGHT)
    inbound, forged = "/srv/nbgrader/exchange/algo1/inbound", f"anna+{name}+{due}+x"
    anna.shell(f"cd {inbound}/anna && mkdir '{forged}' && cp ~/algo1/{name}/{name}.ipynb '{forged}'")
    ben.shell(f"cd {inbound}/ben && mkdir 'ben+{name}+2020-01-01 00:00:00 UTC+x'")
    said = grading.nbgrader(gina, "algo1", f"collect {name} --update")
    assert "it was changed after the due date, and one is collected already" in said
    assert cluster.storage.run("sha256sum", collected) == before
    assert not cluster.storage.run("cat", f"{submitted}/ben/{name}/timestamp.txt").startswith("2020")


def test_what_is_collected_is_out_of_the_students_reach(
    cluster: Cluster, member: Callable[[str, str], HubUser], handed_in: list[HubUser]
) -> None:
    """A change of the box after the collection changes no grade."""
    anna, gina = handed_in[0], member("gina", "algo1")
    grading.nbgrader(gina, "algo1", "collect ps1")
    collected = f"{cluster.storage_dir}/courses/algo1/grading/submitted/anna/ps1/ps1.ipynb"
    before = cluster.storage.run("sha256sum", collected)
    anna.shell(
        'for file in /srv/nbgrader/exchange/algo1/inbound/anna/*/ps1.ipynb; do echo {} > "$file"; done'
    )
    grading.nbgrader(gina, "algo1", "collect ps1")
    assert cluster.storage.run("sha256sum", collected) == before
    _, account = cluster.accounts("GET", "/accounts/anna")
    assert listed_as(cluster, account, "courses/algo1/grading") is None


def test_forged_submissions_are_not_collected(
    cluster: Cluster, member: Callable[[str, str], HubUser], handed_in: list[HubUser]
) -> None:
    """In another's name, a link, with a link to what only graders read, without a time; others go on."""
    anna, gina = handed_in[0], member("gina", "algo1")
    clean = "chmod u+rwx *2030*+w/closed; rm -rf *2030*"
    anna.shell(
        f"cd /srv/nbgrader/exchange/algo1/inbound/anna && {clean}; time='2030-01-01 00:00:00.000000 UTC' && "
        'mkdir "ben+ps1+$time+x" "anna+ps1+$time+y" && '
        'ln -s /srv/courses/algo1/grading/source/ps1/ps1.ipynb "anna+ps1+$time+y/ps1.ipynb" && '
        'echo "$time" | tee "ben+ps1+$time+x/timestamp.txt" > "anna+ps1+$time+y/timestamp.txt" && '
        'ln -s /srv/courses/algo1/grading/source/ps1 "anna+ps1+$time+z" && mkdir "anna+ps1+garbage+2030" && '
        'mkdir -m 0 -p "anna+ps1+$time+w/closed"'
    )
    said = grading.nbgrader(gina, "algo1", "collect ps1 --update")
    assert "claims to be somebody else's than anna's" in said
    assert "is neither a file nor a directory" in said
    assert "it is no directory" in said
    assert "it is not called STUDENT+ASSIGNMENT+TIME" in said
    assert "it cannot be read" in said
    times = cluster.storage.run(
        "sh",
        "-c",
        'cat "$1"/*/ps1/timestamp.txt',
        "sh",
        f"{cluster.storage_dir}/courses/algo1/grading/submitted",
    )
    assert "2030" not in times
    anna.shell(f"cd /srv/nbgrader/exchange/algo1/inbound/anna && {clean}")


def test_student_code_is_graded_with_nothing_of_the_graders(
    cluster: Cluster, member: Callable[[str, str], HubUser], released: HubUser
) -> None:
    """It tries files, tokens, the network, the grader's processes, and what is done with its results."""
    chris, gina = member("chris", "algo1"), member("gina", "algo1")
    chris.shell("cd && rm -rf algo1/ps1 && nbgrader fetch_assignment ps1")
    code = ATTACK.replace("{home}", environment(gina)["HOME"])
    for name in ("gradebook", "hub"):
        address = gina.run(f"import socket; print(socket.gethostbyname({name!r}))").strip()
        code = code.replace(f"{{{name}}}", address)
    grading.solve(chris, "ps1", code)
    chris.shell("cd && nbgrader submit ps1")
    grading.nbgrader(
        gina,
        "algo1",
        *("collect ps1 --update", "autograde ps1 --student=chris --force"),
        "generate_feedback ps1 --student=chris --force",
    )
    graded = json.loads(gina.shell("cat ~/courses/algo1/grading/autograded/chris/ps1/ps1.ipynb"))
    printed = "".join(
        "".join(output.get("text", "")) for cell in graded["cells"] for output in cell.get("outputs", [])
    )
    results = dict(re.findall(r"ATTACK (\w+) (worked|failed: \w+)", printed))
    assert len(results) == ATTACK.count("\ntried(")
    assert {name for name, result in results.items() if result == "worked"} == HARMLESS, printed
    assert {results[name] for name in FILTERED} == {"failed: PermissionError"}
    assert grading.scores(gina, "algo1", "ps1")["chris"] == 2

    assert not cluster.storage.run("find", f"{cluster.storage_dir}/courses/algo1/grading", "-type", "l")
    processes = "import pathlib; print([p.read_text() for p in pathlib.Path('/proc').glob('[0-9]*/cmdline')])"
    assert "98765" not in gina.run(processes)
    feedback = gina.shell("cat ~/courses/algo1/grading/feedback/chris/ps1/ps1.html")
    assert "<b>bold</b>" in feedback
    assert not re.search(r"<(img|script)[^>]*>?EVIL|<img[^>]*EVIL", feedback)


def test_sixty_submissions_are_collected_in_one_go(
    cluster: Cluster,
    member: Callable[[str, str], HubUser],
    handed_in: list[HubUser],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of sixty students, each from a box of its own."""
    gina, assignment = member("gina", "algo1"), f"many-{uuid.uuid4().hex[:6]}"
    names = [f"many-{number:02}" for number in range(60)]
    body = {"groups": ["students", "nbgrader-algo1"]}
    made = cluster.accounts_all(
        [{"method": "PUT", "path": f"/accounts/{name}", "body": body} for name in names]
    )
    assert {status for status, _ in made} <= {200, 201}
    source = next(name for name in grading.submissions(handed_in[1]) if name.startswith("ben+ps1+"))
    cluster.storage.run(
        *("sh", "-c"),
        'cd "$1" && for box in many-*; do copy="$box/$box+$3+${2#ben+ps1+}" && cp -r "ben/$2" "$copy" && '
        'chown -R "$(stat -c %u:%g "$box")" "$copy"; done',
        *("sh", f"{cluster.storage_dir}/exchange/algo1/inbound", source, assignment),
    )
    grading.write_assignment(gina, "algo1", assignment)
    grading.nbgrader(gina, "algo1", f"generate_assignment {assignment}")
    began = time.monotonic()
    said = grading.nbgrader(gina, "algo1", f"collect {assignment}")
    took = time.monotonic() - began
    with capsys.disabled():
        print(f"\nsixty submissions collected in {took:.1f} s")
    assert said.count("Collecting submission: many-") == len(names)


@pytest.mark.parametrize("kernel", ["bash", "ir"])
def test_other_languages_are_graded(member: Callable[[str, str], HubUser], kernel: str) -> None:
    """Bash in a terminal of its own, R over sockets that it names in its own way."""
    hana, students = member("hana", "db1"), [member(name, "db1") for name in ("dora", "emil")]
    _, right, wrong, _ = grading.LANGUAGES[kernel]
    name = hand_out(hana, students, kernel)
    for student, solution in zip(students, (wrong, right), strict=True):
        grading.solve(student, name, solution)
        student.shell(f"cd && nbgrader submit {name}")
    grading.nbgrader(hana, "db1", f"collect {name}", f"autograde {name}")
    assert grading.scores(hana, "db1", name) == {"dora": 0, "emil": 2}


def test_a_kernel_that_wants_the_network_is_not_graded(member: Callable[[str, str], HubUser]) -> None:
    """And the grader reads why, at once."""
    hana, emil = member("hana", "db1"), member("emil", "db1")
    name = hand_out(hana, [emil], "java")
    emil.shell(f"cd && nbgrader submit {name}")
    with pytest.raises(AssertionError, match="a notebook for 'java' cannot be autograded: its kernel talks"):
        grading.nbgrader(hana, "db1", f"collect {name}", f"autograde {name}")


def hand_out(grader: HubUser, students: list[HubUser], kernel: str) -> str:
    """Release an assignment of db1 for a kernel, and let students fetch it; returns its name."""
    name = f"{kernel}-{uuid.uuid4().hex[:6]}"
    grading.write_assignment(grader, "db1", name, kernel)
    grading.nbgrader(grader, "db1", f"generate_assignment {name}", f"release_assignment {name}")
    for student in students:
        student.shell(f"cd && nbgrader fetch_assignment {name}")
    return name


# --- in the browser ---


def test_a_round_in_the_browser(member: Callable[[str, str], HubUser], page: Page, screenshots: Path) -> None:
    """Formgrader within JupyterLab and the list of assignments, each by its buttons."""
    gina, anna = member("gina", "algo1"), member("anna", "algo1")
    name = f"browser-{uuid.uuid4().hex[:6]}"
    grading.write_assignment(gina, "algo1", name)
    open_lab(page, gina)
    choose(page, "Formgrader")
    formgrader = page.frame_locator("#formgrader-iframe iframe")
    for column in ("assign", "release"):
        press(formgrader, name, column)
    page.screenshot(path=screenshots / "6-formgrader.png")

    student = page.context.browser.new_context(
        ignore_https_errors=True, viewport=page.viewport_size
    ).new_page()
    student.set_default_timeout(MINUTE)
    open_lab(student, anna)
    choose(student, "Assignment List")
    assignment_button(student, name, "Fetch").click()
    expect(assignment_button(student, name, "Submit")).to_be_visible()
    grading.solve(anna, name, grading.RIGHT)
    assignment_button(student, name, "Submit").click()
    expect(student.locator("#submitted_assignments_list")).to_contain_text(name)
    student.screenshot(path=screenshots / "7-assignments.png")

    press(formgrader, name, "collect")
    row(formgrader, name).locator("td.num-submissions a").click()
    press(formgrader, "anna", "autograde", "student-id")
    expect(row(formgrader, "anna", "student-id").locator("td.score")).to_have_text("2 / 2")
    page.screenshot(path=screenshots / "8-graded.png")
    press(formgrader, "anna", "generate-feedback", "student-id")
    press(formgrader, "anna", "release-feedback", "student-id")

    submitted = student.locator("#submitted_assignments_list .list_item", has_text=name).first

    # The button is there before, too; the list is new when it tells of the feedback. A node asks again what
    # another one has written after a minute at most (nfs(5), acdirmax).
    def told() -> bool:
        student.locator("#refresh_assignments_list").click()
        expect(submitted).to_contain_text("feedback available to fetch")
        return True

    wait_for("the feedback in the list", told, timeout=90)
    assignment_button(student, name, "Fetch Feedback").click()
    fetched = f"~/algo1/{name}/feedback/*/"
    wait_for("the feedback", lambda: f"{name}.html" in anna.shell(f"ls {fetched}"), timeout=60)


def open_lab(page: Page, user: HubUser) -> None:
    """Log in, and go to the server that runs."""
    page.goto(f"{user.url}/hub/login?next=%2Fuser%2F{user.name}%2Flab")
    page.locator("#username_input").fill(user.name)
    page.locator("#password_input").fill(user.password)
    page.locator("#login_submit").click()
    expect(page).to_have_url(re.compile(f"/user/{user.name}/lab"))


def choose(page: Page, entry: str) -> None:
    """Choose an entry of JupyterLab's menu of nbgrader."""
    page.locator(".lm-MenuBar-item", has_text="Nbgrader").click()
    page.locator(".lm-Menu-item", has_text=entry).first.click()


def row(frame: FrameLocator, text: str, column: str = "name") -> Locator:
    """The row of formgrader's table that has a text in a column."""
    exactly = re.compile(f"^{re.escape(text)}$")
    return frame.locator("tr").filter(has=frame.locator(f"td.{column}", has_text=exactly))


def press(frame: FrameLocator, text: str, column: str, of: str = "name") -> None:
    """Press the button in a column of a row, and close the window that says that it went well."""
    row(frame, text, of).locator(f"td.{column} a").click()
    expect(frame.locator("#success-modal, #error-modal")).to_be_visible(timeout=MINUTE)
    assert frame.locator("#error-modal").count() == 0, frame.locator("#error-modal").inner_text()
    frame.locator("#success-modal .modal-footer button").click()
    expect(frame.locator("#success-modal")).to_have_count(0)


def assignment_button(page: Page, name: str, label: str) -> Locator:
    """A button of an assignment in the list of assignments."""
    return page.locator(".list_item", has_text=name).get_by_role("button", name=label, exact=True)
