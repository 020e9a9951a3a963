"""The table of courses, and the spawner that goes by it."""

import fcntl
import importlib.util
import json
import logging
import os
import re
import runpy
import shutil
import stat
import sys
import tempfile
import threading
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import AsyncMock, MagicMock

import accounts
import courses as module
import pytest
import yaml
from courses import Course, CourseSpawner
from jupyterhub.handlers.pages import SpawnHandler
from spawner import SpawnFailed
from traitlets import TraitError


def load(path):
    spec = importlib.util.spec_from_file_location(Path(path).stem + "_loaded", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


ROOT = Path(__file__).resolve().parents[2]
table = load(ROOT / "plugins/filter/courses.py")
IMAGES = {name: f"registry.test:5000/campus/{name}@sha256:0" for name in ("notebook", "notebook-teacher")}
ALGO = {
    "name": "algo1",
    "title": "Algorithms 1",
    "students": {"ldap_group": "cn=algo1-students,dc=x"},
    "graders": {"ldap_group": "cn=algo1-staff,dc=x"},
    "image": "notebook",
    "kernels": ["python"],
    "memory": {"guarantee": "256M", "limit": "1G"},
    "cpu": {"limit": 1},
    "shared": True,
    "nbgrader": True,
    "from": date(2026, 10, 1),
    "until": "2027-03-01",
}
DB = {"name": "db-1", "students": {"ldap_group": "cn=db,dc=x"}}


# --- the table ---


def problems(*courses, kernels=("python",)):
    return table.course_problems(list(courses), list(IMAGES), list(kernels))


def test_a_good_table_has_no_problems():
    assert problems(ALGO, DB) == []
    assert problems() == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"name": "Algo 1"}, "is no name"),
        ({"name": "../x"}, "is no name"),
        ({"name": "postgres"}, "is no name"),
        ({"name": 7}, "entry 1 has no name"),
        ({"quotas": "5G"}, "has the key 'quotas', which is none of name, title"),
        ({"students": None}, "has students, which is not a mapping"),
        ({"students": {"group": "x"}}, "has students.group; there is ldap_group"),
        ({"graders": {"ldap_group": "algo1-staff"}}, "has graders without ldap_group, the DN of a group"),
        ({"image": "rstudio"}, "the cluster's images are notebook, notebook-teacher"),
        ({"kernels": ["python", "java"]}, "wants the kernels java; there are python"),
        ({"quota": "lots"}, "has quota: 'lots', which is no size such as 5G"),
        ({"quota": "100"}, "which is no size such as 5G"),
        ({"quota": "0G"}, "which is no size such as 5G"),
        ({"quota": 5}, "has quota, which is not a text"),
        ({"memory": {"limit": "lots"}}, "which is no size such as 512M"),
        ({"memory": {"limit": "512m"}}, "which is no size such as 512M"),
        ({"memory": {"limit": "536870912"}}, "which is no size such as 512M"),
        ({"memory": {"guarantee": True}}, "which is no size such as 512M"),
        ({"cpu": {"limit": "two"}}, "which is no number"),
        ({"from": "1 October"}, "which is no date such as 2026-10-01"),
        ({"until": date(2026, 9, 1)}, "ends on 2026-09-01, before it begins on 2026-10-01"),
        ({"nbgrader": "yes"}, "has nbgrader, which is not true or false"),
    ],
)
def test_what_cannot_be_is_told(change, problem):
    found = problems(ALGO | change)
    assert any(problem in sentence for sentence in found), found
    assert all(sentence.startswith("courses: ") and sentence.endswith(".") for sentence in found)


def test_values_as_ansible_has_them():
    """Numbers, texts and dates of an inventory are of subclasses that know where they come from."""
    tagged = {kind: type("Tagged", (kind,), {}) for kind in (int, str, date)}
    course = ALGO | {
        "name": tagged[str]("algo1"),
        "cpu": {"limit": tagged[int](1)},
        "from": tagged[date](2026, 10, 1),
    }
    assert problems(course) == []
    assert "which is no number" in problems(ALGO | {"cpu": {"limit": True}})[0]


def test_sizes_are_those_that_the_hub_takes():
    """JupyterHub's trait is the judge of each that has no problem."""
    for size in ("512M", "1.5G", 1 << 29):
        assert problems(ALGO | {"memory": {"guarantee": size, "limit": size}}) == []
        assert make(mem_limit=size).mem_limit == int(
            float(str(size).strip("MG")) * {"M": 2**20, "G": 2**30}.get(str(size)[-1], 1)
        )


def test_the_kernels_of_courses_are_in_the_images():
    courses = [
        ALGO | {"kernels": ["java", "python"]},
        DB,
        DB | {"kernels": ["perl", "r"]},
        DB | {"kernels": None},
        7,
    ]
    assert table.course_kernels(courses) == ["python", "r", "java"]
    assert table.course_kernels("algo1") == []
    spec = yaml.safe_load((ROOT / "roles/images/meta/argument_specs.yml").read_text())
    options = spec["argument_specs"]["main"]["options"]
    for name in ("images_kernels", "images_course_kernels"):
        assert options[name]["choices"] == list(table.KERNELS)


def test_rules_between_courses_and_keys():
    assert problems(ALGO, ALGO) == ["courses: 'algo1' is there twice."]
    without = {key: value for key, value in ALGO.items() if key != "graders"}
    assert problems(without) == ["courses: 'algo1' has nbgrader and no graders."]
    assert table.course_problems({"algo1": {}}, [], []) == ["courses is no list."]


def test_the_hub_takes_what_the_table_gives():
    """Through the file of the configuration, which is JSON-like text."""
    settings = json.loads(json.dumps(table.course_settings([ALGO, DB], IMAGES, "notebook-teacher")))
    algo, db = (Course.from_settings(one) for one in settings)
    assert (algo.image, algo.grader_image) == (IMAGES["notebook"], IMAGES["notebook-teacher"])
    assert (algo.mem_limit, algo.cpu_limit, algo.kernels) == ("1G", 1, ("python",))
    assert (algo.opens, algo.closes) == (date(2026, 10, 1), date(2027, 3, 1))
    assert (db.image, db.opens, db.closes, db.nbgrader) == ("", date.min, date.max, False)


def test_the_groups_are_nbgraders():
    assert table.course_ldap_groups([ALGO, DB]) == {
        "nbgrader-algo1": "cn=algo1-students,dc=x",
        "formgrade-algo1": "cn=algo1-staff,dc=x",
        "nbgrader-db-1": "cn=db,dc=x",
    }


# --- the spawner ---


class Spawner(CourseSpawner):
    """With a name, and without a database."""

    server_name = ""

    @property
    def name(self):
        """The server's name."""
        return self.server_name


def make(*groups, server="", options=None, courses=(ALGO, DB), **traits):
    user = SimpleNamespace(
        name="alice",
        url="/user/alice",
        escaped_name="alice",
        groups=[SimpleNamespace(name=group) for group in groups],
    )
    hub = SimpleNamespace(public_host="", api_url="http://127.0.0.1:8081/hub/api", base_url="/hub/")
    settings = {
        "image": "default",
        "role_images": {"teachers": "for-teachers"},
        "mem_limit": "512M",
        "nfs_server": "192.0.2.1",
        "gradebook_key": "key",
        "storage_groups": ["students", "teachers"],
        "courses": table.course_settings(list(courses), IMAGES, "notebook-teacher"),
        **traits,
    }
    spawner = Spawner(user=user, hub=hub, orm_spawner=None, **settings)
    spawner.server_name = server
    spawner.user_options = options or {}
    spawner.account = {"account": "alice", "uid": 100000, "gid": 100000, "groups": {}, "home": "/homes/alice"}
    return spawner


@pytest.fixture(autouse=True)
def today(monkeypatch):
    """A day on which all courses are open, unless the test says another."""
    clock = SimpleNamespace(day=date(2026, 11, 1))
    now = SimpleNamespace(now=lambda zone: datetime(*clock.day.timetuple()[:3], tzinfo=UTC))
    monkeypatch.setattr(module, "datetime", now)
    return clock


def chosen(spawner):
    course, role = spawner.choose_course()
    return (course.name, role) if course else None


@pytest.mark.parametrize(
    ("groups", "server", "options", "expected"),
    [
        ((), "", {}, None),
        (("students",), "", {}, None),
        (("nbgrader-algo1",), "", {}, ("algo1", "student")),
        (("formgrade-algo1",), "", {}, ("algo1", "grader")),
        (("nbgrader-algo1", "formgrade-algo1"), "", {}, ("algo1", "grader")),
        (("nbgrader-algo1", "nbgrader-db-1"), "", {}, None),
        (("nbgrader-algo1", "nbgrader-db-1"), "", {"course": "db-1"}, ("db-1", "student")),
        (("nbgrader-algo1",), "", {"course": ""}, ("algo1", "student")),
        (("nbgrader-algo1", "nbgrader-db-1"), "", {"course": ""}, None),
        (("nbgrader-algo1", "nbgrader-db-1"), "db-1", {}, ("db-1", "student")),
        (("nbgrader-algo1", "nbgrader-db-1"), "db-1", {"course": "algo1"}, ("db-1", "student")),
        (("nbgrader-algo1",), "db-1", {}, ("algo1", "student")),
        # the choice of another semester
        (("nbgrader-algo1",), "", {"course": "db-1"}, ("algo1", "student")),
        (("nbgrader-algo1", "nbgrader-db-1"), "", {"course": "past"}, None),
        ((), "", {"course": "../algo1"}, None),
        (("nbgrader-algo1", "nbgrader-db-1"), "", {"course": ["db-1"]}, None),
    ],
)
def test_which_course_a_start_is_for(groups, server, options, expected):
    assert chosen(make(*groups, server=server, options=options)) == expected


@pytest.mark.parametrize("wanted", ["db-1", "nothing", "../algo1"])
def test_a_course_that_is_not_the_users(wanted):
    with pytest.raises(SpawnFailed, match="You are not in this course") as refused:
        make("nbgrader-algo1").options_from_form({"course": [wanted]})
    assert refused.value.status_code == 403


@pytest.mark.parametrize(
    ("day", "student"),
    [
        (date(2026, 9, 30), False),
        (date(2026, 10, 1), True),
        (date(2027, 3, 1), True),
        (date(2027, 3, 2), False),
    ],
)
def test_students_have_a_course_for_its_days_and_graders_always(today, day, student):
    today.day = day
    assert bool(make("nbgrader-algo1").my_courses) is student
    assert make("formgrade-algo1").my_courses


async def test_the_start_page_asks_who_has_a_choice():
    assert await make("nbgrader-algo1").get_options_form() == ""
    assert await make("nbgrader-algo1", "nbgrader-db-1", server="db-1").get_options_form() == ""
    evil = ALGO | {"title": "<script>'\"&"}
    form = await make(
        "nbgrader-algo1", "formgrade-algo1", "nbgrader-db-1", courses=(evil, DB)
    ).get_options_form()
    assert "&lt;script&gt;&#x27;&quot;&amp;" in form
    assert "<script>" not in form
    assert "You grade. Image notebook-teacher. Kernels: python. Memory 1G. 1 CPU." in form
    assert "Image default. Memory 512M." in form
    assert form.count('type="radio"') == 3


def test_the_answer_of_the_start_page():
    spawner = make("nbgrader-algo1", "nbgrader-db-1")
    assert spawner.options_from_form({"course": ["algo1"], "_xsrf": ["x"]}) == {"course": "algo1"}
    assert spawner.options_from_form({"course": [""]}) == {"course": ""}
    assert spawner.options_from_form({}) == {}
    assert spawner.options_from_query({"course": ["db-1"]}) == {"course": "db-1"}


async def visit(spawner, **options):
    """Open the start page with `opt-…` in its address; its handler, whose own parts are JupyterHub's."""
    user = SimpleNamespace(
        name="alice",
        running=False,
        get_or_create_spawner=lambda *_, **__: spawner,
        get_auth_state=AsyncMock(),
    )
    page = MagicMock(current_user=user, _render_form=AsyncMock(), _wrap_spawn_single_user=AsyncMock())
    page.request.query_arguments = {f"opt-{name}": [value.encode()] for name, value in options.items()}
    page._get_user_options = lambda query: SpawnHandler._get_user_options(page, query)
    await SpawnHandler._get.__wrapped__(page, "alice", "", "")
    return page


@pytest.mark.parametrize(
    ("groups", "server", "wanted", "offered"),
    [
        ((), "", "algo1", [""]),
        (("nbgrader-algo1",), "", "db-1", ["algo1"]),
        (("nbgrader-algo1", "nbgrader-db-1"), "", "nothing", ["algo1", "db-1", ""]),
        (("nbgrader-algo1", "nbgrader-db-1"), "db-1", "nothing", ["db-1"]),
    ],
)
async def test_a_link_to_a_course_that_is_not_the_users_starts_nothing(groups, server, wanted, offered):
    """The page says so, and offers what there is; to visit it again without a wish is as it always was."""
    spawner = make(*groups, server=server)
    page = await visit(spawner, course=wanted)
    page._wrap_spawn_single_user.assert_not_called()
    page.set_status.assert_called_once_with(403)
    shown = page._render_form.call_args.kwargs
    assert shown["message"] == "You are not in this course, or it is closed."
    assert re.findall(r'value="(.*?)"', shown["spawner_options_form"]) == offered
    for name in offered:
        expected = (name, "student") if name else None
        assert chosen(make(*groups, server=server, options={"course": name})) == expected
    again = await visit(spawner)
    assert again._wrap_spawn_single_user.called is (len(offered) == 1)


async def test_limits_and_image_end_with_the_start(monkeypatch):
    """A spawner outlives its start: the next one, for no course, has the site's own again."""
    seen = []

    async def start(self):
        seen.append((self.choose_image(), self.mem_limit, self.mem_guarantee, self.cpu_limit))

    monkeypatch.setattr(CourseSpawner.__base__, "start_service", start)
    spawner = make("nbgrader-algo1", "nbgrader-db-1", options={"course": "algo1"})
    await spawner.start_service()
    spawner.user_options = {"course": ""}
    # what a site's own hook sets before the start stays
    spawner.mem_guarantee = "64M"
    await spawner.start_service()
    assert seen == [(IMAGES["notebook"], 2**30, 2**28, 1.0), ("default", 2**29, 2**26, 0.0)]


@pytest.mark.parametrize(
    ("groups", "image"),
    [
        (("nbgrader-algo1",), IMAGES["notebook"]),
        (("formgrade-algo1", "students"), IMAGES["notebook-teacher"]),
        (("nbgrader-db-1", "teachers"), "for-teachers"),
        (("nbgrader-db-1",), "default"),
    ],
)
def test_images(groups, image):
    spawner = make(*groups)
    spawner.course, spawner.role = spawner.choose_course()
    assert spawner.choose_image() == image


def mounted(spawner):
    spawner.course, spawner.role = spawner.choose_course()
    return {
        mount["Target"]: (mount["VolumeOptions"]["DriverConfig"]["Options"]["device"], mount["ReadOnly"])
        for mount in spawner.mounts
    }


def test_a_student_mounts_material_read_only():
    assert mounted(make("nbgrader-algo1")) == {
        "/home/alice": (":/homes/alice", False),
        "/srv/courses/algo1/material": (":/courses/algo1/material", True),
        "/srv/courses/algo1/shared": (":/courses/algo1/shared", False),
        "/srv/nbgrader/exchange/algo1": (":/exchange/algo1", False),
    }
    assert list(mounted(make("nbgrader-db-1"))) == ["/home/alice", "/srv/courses/db-1/material"]


def test_a_grader_mounts_the_whole_course():
    assert mounted(make("formgrade-algo1")) == {
        "/home/alice": (":/homes/alice", False),
        "/srv/courses/algo1": (":/courses/algo1", False),
        "/srv/nbgrader/exchange/algo1": (":/exchange/algo1", False),
    }


def test_no_course_mounts_nothing_of_one():
    spawner = make("nbgrader-algo1", "nbgrader-db-1", options={"course": ""})
    assert list(mounted(spawner)) == ["/home/alice"]


def course_environment(spawner):
    spawner.course, spawner.role = spawner.choose_course()
    return {key: value for key, value in spawner.get_env().items() if key.startswith("CAMPUS_")}


def test_quotas_are_the_students():
    """Graders collect what others have written."""
    courses = [{**ALGO, "quota": "1.5G"}, {**DB, "quota": "512m"}, {"name": "none"}]
    students = {"nbgrader-algo1": 1536 * 1024, "nbgrader-db-1": 512 * 1024}
    assert table.quotas(courses, "/srv/x", "10G") == {
        "directory": "/srv/x",
        "default": 10 * 1024**2,
        "groups": {**students, "formgrade-algo1": 10 * 1024**2},
    }
    assert table.quotas([], "/srv/x") == {"directory": "/srv/x", "default": 0, "groups": {}}
    assert table.quotas([ALGO], "/srv/x")["groups"] == {}
    assert table.kibibytes("1.1M") == 1152


def test_only_graders_get_the_gradebooks_password():
    password = table.gradebook_passwords([ALGO, DB], "key")
    assert list(password) == ["algo1"]
    student = course_environment(make("nbgrader-algo1"))
    assert student == {
        "CAMPUS_COURSE": "algo1",
        "CAMPUS_COURSE_ROLE": "student",
        "CAMPUS_KERNELS": "python",
        "CAMPUS_EXCHANGE": "/srv/nbgrader/exchange",
    }
    assert course_environment(make("formgrade-algo1")) == {
        **student,
        "CAMPUS_COURSE_ROLE": "grader",
        "CAMPUS_GRADEBOOK": f"postgresql+psycopg2://algo1:{password['algo1']}@gradebook/algo1",
    }
    assert course_environment(make("nbgrader-db-1")) == {
        "CAMPUS_COURSE": "db-1",
        "CAMPUS_COURSE_ROLE": "student",
    }
    assert course_environment(make()) == {}


@pytest.mark.parametrize(
    ("groups", "grading", "expected"),
    [
        (["formgrade-algo1"], "grading", ["notebooks", "grading"]),
        (["formgrade-algo1"], "", ["notebooks"]),
        (["nbgrader-algo1"], "grading", ["notebooks"]),
        (["formgrade-db-1"], "grading", ["notebooks"]),
        ([], "grading", ["notebooks"]),
    ],
)
async def test_only_graders_servers_are_on_the_gradebooks_network(groups, grading, expected):
    spawner = make(*groups, network_name="notebooks", grading_network=grading)
    spawner.course, spawner.role = spawner.choose_course()
    assert [network["Target"] for network in (await spawner.task_spec())["Networks"]] == expected


def test_the_storage_knows_all_courses_of_a_user_whichever_is_open(today):
    """Groups that came and went with the choice would make each start wait for the NFS server."""
    today.day = date(2030, 1, 1)
    groups = ("students", "nbgrader-algo1", "formgrade-db-1", "nbgrader-unknown", "other")
    assert make(*groups).storage_group_names == sorted(
        ["students", "nbgrader-algo1", "course-algo1", "formgrade-db-1", "course-db-1"]
    )


@pytest.mark.parametrize(
    "settings", [{"title": "no name"}, {"name": "x", "quota": 1}, {"name": "x", "opens": "soon"}]
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(TraitError, match="courses"):
        Spawner(courses=[settings])


# --- the storage ---


def places(exports):
    return {
        str(path.relative_to(exports)): (path.stat().st_gid, oct(stat.S_IMODE(path.stat().st_mode))[2:])
        for path in sorted(exports.rglob("*"))
        if path.parent != exports
    }


@pytest.fixture
def store(tmp_path):
    """A storage with two courses in its settings, and nothing made yet."""
    for name in ("homes", "state", "exports/courses", "exports/exchange"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("state/passwd", "state/group", "homes/.campus-storage"):
        (tmp_path / name).touch()
    settings = accounts.Settings(
        homes_dir=str(tmp_path / "homes"),
        state_dir=str(tmp_path / "state"),
        exports_dir=str(tmp_path / "exports"),
        system_files="",
        courses=json.dumps(table.course_directories([ALGO, DB])),
    )
    return accounts.Store(settings)


@pytest.mark.root
def test_directories_of_courses(store, tmp_path):
    """Made once; what the administrator changes or adds stays."""
    store.write([])
    store.make_courses()
    gid = {name: group.gid for name, group in store.index().groups.items()}
    members, graders = gid["course-algo1"], gid["formgrade-algo1"]
    made = places(tmp_path / "exports")
    assert made == {
        "courses/algo1": (graders, "751"),
        "courses/algo1/grading": (graders, "2770"),
        "courses/algo1/material": (members, "2770"),
        "courses/algo1/shared": (members, "2770"),
        "courses/db-1": (gid["formgrade-db-1"], "751"),
        "courses/db-1/material": (gid["course-db-1"], "2770"),
        "exchange/algo1": (members, "750"),
        "exchange/algo1/feedback": (graders, "2771"),
        "exchange/algo1/inbound": (graders, "751"),
        "exchange/algo1/outbound": (graders, "2775"),
    }
    (tmp_path / "exports/courses/algo1/shared").chmod(0o700)
    store.make_courses()
    assert places(tmp_path / "exports") == made | {"courses/algo1/shared": (members, "700")}


@pytest.mark.root
def test_a_student_gets_a_box_in_each_course_with_an_exchange(store, tmp_path):
    store.write([])
    store.make_courses()
    groups = ("students", "nbgrader-algo1", "course-algo1", "nbgrader-db-1")
    ((account, _),) = store.write([accounts.Request("alice", groups)])
    inbound = tmp_path / "exports/exchange/algo1/inbound"
    box = (inbound / account.account).stat()
    graders = store.index().groups["formgrade-algo1"].gid
    assert (box.st_uid, box.st_gid, stat.S_IMODE(box.st_mode)) == (account.uid, graders, 0o2770)
    store.write([accounts.Request("tina", ("teachers", "formgrade-algo1", "course-algo1"))])
    assert [path.name for path in inbound.iterdir()] == ["alice"]


@pytest.mark.root
def test_without_the_exchange_an_account_is_made_all_the_same(store, tmp_path):
    """A course that was archived: its students go on with everything else."""
    ((account, created),) = store.write([accounts.Request("alice", ("nbgrader-algo1",))])
    assert created
    assert (tmp_path / "homes" / account.account).is_dir()


@pytest.mark.parametrize("text", ["{}x", '[{"name": "../x"}]', '[{"title": "x"}]'])
def test_settings_that_are_no_courses(text):
    with pytest.raises(ValueError, match=r"courses|Extra data"):
        accounts.Settings(courses=text)


# --- nbgrader's exchange ---


@pytest.fixture(scope="module")
def exchange():
    """The image's module, with as much of nbgrader as its own functions need: none."""
    names = {
        "jinja2": ["pass_context"],
        "jupyter_client.manager": ["AsyncKernelManager"],
        "nbconvert.exporters": ["HTMLExporter"],
        "nbconvert.filters.strings": ["clean_html"],
        "nbconvert.preprocessors": ["CSSHTMLHeaderPreprocessor", "Preprocessor"],
        "nbgrader.api": ["Gradebook", "MissingEntry"],
        "nbgrader.converters": ["Autograde"],
        "nbgrader.exchange.default": ["ExchangeCollect", "ExchangeReleaseFeedback", "ExchangeSubmit"],
        "nbgrader.preprocessors": ["ClearHiddenTests", "ClearSolutions", "GetGrades"],
        "nbgrader.server_extensions.formgrader.base": ["BaseHandler"],
        "nbgrader.utils": ["get_username", "parse_utc"],
    }
    stand_ins = {part: ModuleType(part) for name in names for part in (name.split(".")[0], name)}
    for name, classes in names.items():
        for one in classes:
            setattr(stand_ins[name], one, type(one, (), {}))
    stand_ins |= {name: ModuleType(name) for name in ("nbgrader.exchange", "nbconvert.filters")}
    stand_ins["jinja2"].pass_context = lambda function: function
    stand_ins["nbgrader.converters"].Autograde.start = lambda converter: converter.graded()
    stand_ins["nbgrader.utils"].parse_utc = lambda text: datetime.fromisoformat(text.removesuffix(" UTC"))
    before = {name: sys.modules.get(name) for name in stand_ins}
    sys.modules.update(stand_ins)
    try:
        yield load(ROOT / "files/images/notebook/campus_nbgrader.py")
    finally:
        for name, one in before.items():
            sys.modules.pop(name) if one is None else sys.modules.update({name: one})


@pytest.fixture
def submission(tmp_path):
    """A submission in anna's box."""
    made = tmp_path / "inbound/anna/anna+ps1+2026-11-01 10:00:00.0 UTC+x"
    made.mkdir(parents=True)
    (made / "ps1.ipynb").write_text("{}")
    (made / "data").mkdir()
    return made


def test_a_submission_as_it_should_be(exchange, submission):
    assert exchange.refusal(submission.parent, submission, "ps1") == ""


def test_submissions_that_are_refused(exchange, submission):
    box = submission.parent
    other = box / submission.name.replace("anna", "ben")
    other.mkdir()
    assert "somebody else's" in exchange.refusal(box, other, "ps1")
    for name in ("anna+ps1", "anna+ps1+yesterday+x", "anna+ps1++x", submission.name.replace("+", "+zz+", 1)):
        (box / name).mkdir()
        assert exchange.refusal(box, box / name, "ps1") == "it is not called STUDENT+ASSIGNMENT+TIME"
    link = box / f"{submission.name}y"
    link.symlink_to(other)
    assert exchange.refusal(box, link, "ps1") == "it is no directory"


def test_submissions_with_something_else_than_files_are_refused(exchange, submission):
    assert looked_at(exchange, submission) == ""
    (submission / "data/secret").symlink_to("/etc/passwd")
    assert looked_at(exchange, submission) == "'secret' in it is neither a file nor a directory"
    (submission / "data/secret").unlink()
    os.mkfifo(submission / "pipe")
    assert "'pipe' in it" in looked_at(exchange, submission)


def looked_at(exchange, submission):
    """What stands in the way inside of a submission."""
    try:
        exchange.changed_at(submission, exchange.Allowance(exchange.MOST_FILES))
    except exchange.RefusedError as reason:
        return str(reason)
    return ""


def test_a_submission_is_looked_at_no_further_than_it_may_go(exchange, submission, monkeypatch):
    """Before anything else is done with it, and as far as a copy goes."""
    monkeypatch.setattr(exchange, "MOST_FILES", 3)
    assert looked_at(exchange, submission) == ""
    (submission / "more").touch()
    assert looked_at(exchange, submission) == exchange.TOO_MANY
    (submission / "more").unlink()
    monkeypatch.setattr(exchange, "MOST_DEPTH", 1)
    assert looked_at(exchange, submission) == ""
    (submission / "ps1.ipynb").unlink()
    (submission / "data/deep").mkdir()
    assert looked_at(exchange, submission) == exchange.TOO_MANY


def test_a_directory_without_end_is_not_read_to_its_end(exchange, submission, monkeypatch):
    """Not even to tell how much is in it."""
    for number in range(50):
        (submission / f"{number}.txt").touch()
    seen = []
    entry = SimpleNamespace(
        is_dir=lambda **_: False, is_file=lambda **_: True, stat=lambda **_: submission.lstat()
    )

    class Endless:
        """A directory as os.scandir has it, which counts what is taken of it."""

        def __enter__(self):
            return iter(lambda: seen.append(1) or entry, None)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(exchange.os, "scandir", lambda _: Endless())
    monkeypatch.setattr(exchange, "MOST_FILES", 10)
    assert looked_at(exchange, submission) == exchange.TOO_MANY
    assert len(seen) == 10


def test_what_is_a_secret(exchange, tmp_path):
    """A name's part of the feedback: nothing that is not as nbgrader makes it."""
    file = tmp_path / "submission_secret.txt"
    assert not exchange.is_secret(file)
    for content, good in ((b"ab" * 64, True), (b"../../x", False), (b"", False), (b"\xff" * 64, False)):
        file.write_bytes(content)
        assert exchange.is_secret(file) is good
    file.unlink()
    file.mkdir()
    assert not exchange.is_secret(file)
    exchange.write_plain(file, "text")
    assert file.read_text() == "text"


@pytest.mark.root
def test_a_submission_that_is_somebody_elses(exchange, submission):
    os.chown(submission, 100001, -1)
    assert "belongs to 100001, and not to anna" in exchange.refusal(submission.parent, submission, "ps1")


def test_a_copy_has_plain_files_only(exchange, submission, tmp_path):
    """Links that came after the check, to files and to directories, are not followed."""
    (submission / "link").symlink_to("/etc/passwd")
    (submission / "tree").symlink_to("/etc")
    os.mkfifo(submission / "pipe")
    (submission / "data/more.csv").write_text("1,2")
    exchange.copy_plain(submission, tmp_path / "copy")
    found = sorted(str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*"))
    assert found == ["data", "data/more.csv", "ps1.ipynb"]
    assert (tmp_path / "copy/data/more.csv").read_text() == "1,2"


def test_a_copy_is_of_one_owner_and_size(exchange, submission, tmp_path):
    """The directory itself may have been exchanged for a link, too."""
    box = os.open(submission.parent, os.O_RDONLY)
    name, owner = submission.name, os.getuid()
    try:
        exchange.copy_plain(name, tmp_path / "good", directory=box, owner=owner, size=2)
        with pytest.raises(exchange.RefusedError, match="too large"):
            exchange.copy_plain(name, tmp_path / "large", directory=box, owner=owner, size=1)
        with pytest.raises(exchange.RefusedError, match=f"something in it belongs to {owner}"):
            exchange.copy_plain(name, tmp_path / "other", directory=box, owner=owner + 1)
        (submission.parent / "link").symlink_to("/etc")
        with pytest.raises(exchange.RefusedError, match="it is no directory any more"):
            exchange.copy_plain("link", tmp_path / "link", directory=box)
        deep = submission.joinpath(*["d"] * 40)
        deep.mkdir(parents=True)
        with pytest.raises(exchange.RefusedError, match="too many files or directories"):
            exchange.copy_plain(name, tmp_path / "deep", directory=box)
    finally:
        os.close(box)
    assert (tmp_path / "good/ps1.ipynb").read_text() == "{}"


def test_outputs_that_are_shown(exchange):
    """Nothing that a browser would run, and no attributes."""
    data = {
        "text/plain": "x",
        "image/jpeg": 'AA"><img src=x onerror=alert(1)>',
        "application/javascript": "alert(1)",
        "image/svg+xml": "<svg/>",
    }
    output = {"data": {**data, "image/png": "AAAA\n"}, "metadata": {"image/png": {"width": "1 onload=x"}}}
    cell, _ = exchange.PlainOutputs().preprocess_cell({"outputs": [output, {"text": "stream"}]}, {}, 0)
    assert cell["outputs"] == [
        {"data": {"text/plain": "x", "image/png": "AAAA\n"}, "metadata": {}},
        {"text": "stream"},
    ]


def test_feedback_has_no_hidden_tests(exchange):
    """Neither in the source nor where an error or a warning quotes it; other cells stay as they are."""
    hide = exchange.WithoutHiddenTests()
    hide.begin_test_delimeter, hide.end_test_delimeter = "BEGIN HIDDEN TESTS", "END HIDDEN TESTS"
    error = {
        "output_type": "error",
        "ename": "AssertionError",
        "evalue": "f(21)",
        "traceback": ["f(21)", "x"],
    }
    warning = {"output_type": "stream", "name": "stderr", "text": "f(21)"}
    tests = "f(2)\n### BEGIN HIDDEN TESTS\nf(21)\n### END HIDDEN TESTS\nf(3)"
    cell, _ = hide.preprocess_cell({"source": tests, "outputs": [dict(error), warning]}, {}, 0)
    assert cell == {
        "source": "f(2)\nf(3)",
        "outputs": [
            {"output_type": "error", "ename": "AssertionError", "evalue": "", "traceback": ["AssertionError"]}
        ],
    }
    forged = {"source": tests, "outputs": [{**error, "ename": "assert f(21)"}]}
    assert hide.preprocess_cell(forged, {}, 0)[0]["outputs"] == [
        {"output_type": "error", "ename": "Error", "evalue": "", "traceback": ["Error"]}
    ]
    other = {"source": "f(2)", "outputs": [dict(error), warning]}
    assert hide.preprocess_cell(dict(other), {}, 0)[0] == other
    text = {"source": "### BEGIN HIDDEN TESTS\nwith no end"}
    assert hide.preprocess_cell(text, {}, 0)[0] == {"source": ""}


def test_the_courses_directory_is_never_a_private_one(exchange, tmp_path, monkeypatch):
    """By the link in the home, as Formgrader wants it, or by the mount, if other things lie there."""
    monkeypatch.setattr(exchange, "COURSES", tmp_path / "srv")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "srv/algo1").mkdir(parents=True)
    assert exchange.course_directory("algo1") == tmp_path / "srv/algo1"
    (tmp_path / "courses").symlink_to(tmp_path / "srv")
    assert exchange.course_directory("algo1") == tmp_path / "courses/algo1"
    (tmp_path / "courses").unlink()
    (tmp_path / "courses/algo1").mkdir(parents=True)
    assert exchange.course_directory("algo1") == tmp_path / "srv/algo1"


@pytest.mark.parametrize("umask", [0o077, 0o007, 0o000])
def test_a_submission_is_open_to_the_group_alone(exchange, submission, tmp_path, umask):
    before = os.umask(umask)
    try:
        exchange.copy_plain(submission, tmp_path / "copy")
        exchange.open_to_group(tmp_path / "copy")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "copy").rglob("*")}
    assert modes == {"data": 0o750, "ps1.ipynb": 0o640}
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o750


def test_orphans_are_those_below_the_first_process(exchange):
    parents = {"30": "20", "31": "30", "40": "1", "41": "40"}
    assert exchange.top_parent("31", parents) == "20"
    assert exchange.top_parent("41", parents) == "1"


@pytest.fixture
def collect(exchange, submission, tmp_path):
    """What a collection of ps1 gives nbgrader, the times that count, where it is due at `due`."""

    def times(due):
        one = exchange.Collect()
        one.coursedir = SimpleNamespace(
            assignment_id="ps1",
            submitted_directory=str(tmp_path / "submitted"),
            format_path=lambda *parts: "/".join(parts),
            get_existing_timestamp=lambda copy: datetime.fromisoformat(
                Path(copy, "timestamp.txt").read_text()
            ),
        )
        one.log = logging.getLogger("collect")
        one._due, one._found, one._inbound = due, {}, Path(tempfile.mkdtemp(dir=tmp_path))
        for path in sorted(submission.parent.iterdir()):
            one.link(submission.parent, path, exchange.Allowance(exchange.MOST_IN_BOX))
        return [exchange.time_in_name(path) for path in one._inbound.iterdir()]

    return times


def test_a_submission_counts_as_of_its_real_time(exchange, collect, caplog):
    """The name says the morning of a day in the past, the file system that it is now."""
    (time,) = collect(None)
    assert datetime.now(UTC).replace(tzinfo=None) - time < exchange.TOLERANCE
    assert "after the time in its name" in caplog.text


def test_a_submission_in_time_counts_as_it_says(exchange, collect, submission, caplog):
    said = datetime.now(UTC).replace(tzinfo=None) - exchange.TOLERANCE / 2
    submission.rename(submission.parent / f"anna+ps1+{said} UTC+x")
    assert collect(None) == [said]
    assert caplog.text == ""


def test_what_is_collected_stays_after_the_due_date(exchange, collect, submission, tmp_path):
    """Whatever a later submission claims; before the due date a new one takes its place."""
    now = datetime.now(UTC).replace(tzinfo=None)
    soon, over = now + timedelta(hours=1), now - timedelta(minutes=1)
    submission.rename(submission.parent / f"anna+ps1+{over} UTC+x")
    assert collect(over) == [over]
    copy = tmp_path / "submitted/anna/ps1"
    copy.mkdir(parents=True)
    (copy / "timestamp.txt").write_text(str(over))
    assert collect(over) == [over]
    (copy / "timestamp.txt").write_text(str(over - timedelta(hours=1)))
    assert collect(soon) == [over]
    with pytest.raises(exchange.RefusedError, match="after the due date, and one is collected already"):
        collect(over)


def test_of_very_many_submissions_the_last_are_looked_at(exchange, submission, monkeypatch, caplog):
    """Whose there are too many is said; nobody else is in its way."""
    monkeypatch.setattr(exchange, "MOST_SUBMISSIONS", 2)
    one = exchange.Collect()
    one.coursedir, one.log = SimpleNamespace(assignment_id="ps1"), logging.getLogger("collect")
    box = submission.parent
    later = [box / submission.name.replace("10:00", f"1{hour}:00") for hour in (1, 2)]
    later[0].mkdir()
    assert one.last_of(box) == [submission, later[0]]
    assert caplog.text == ""
    later[1].mkdir()
    assert one.last_of(box) == later
    assert "anna has too many submissions: 1 are not looked at, only the last 2 are" in caplog.text


def test_large_submissions_do_not_hold_up_those_of_others(
    exchange, submission, monkeypatch, caplog, tmp_path
):
    """So much of a student's is looked at, the last ones first and each once; what is not is told."""
    monkeypatch.setattr(exchange, "MOST_IN_BOX", 7)
    # Each is 4 with itself.
    (submission / "more").touch()
    later = [submission.with_name(submission.name.replace("10:00", f"1{hour}:00")) for hour in (1, 2)]
    other = tmp_path / "inbound/ben/ben+ps1+2026-11-01 10:00:00.0 UTC+x"
    for copy in (*later, other):
        shutil.copytree(submission, copy)
    scans, scan = [], os.scandir
    monkeypatch.setattr(exchange.os, "scandir", lambda path: scans.append(str(path)) or scan(path))
    one = exchange.Collect()
    one.coursedir, one.log = SimpleNamespace(assignment_id="ps1"), logging.getLogger("collect")
    one._due, one._found, one._inbound = None, {}, tmp_path
    for name in ("anna", "ben"):
        one.link_last_of(tmp_path / "inbound" / name)
    assert [path for path, _ in one._found.values()] == [later[1], other]
    for path in (later[0], submission):
        assert f"{path} is not collected: {exchange.NOT_LOOKED_AT}" in caplog.text
    assert scans.count(str(later[1])) == 1
    assert str(submission) not in scans


@pytest.fixture
def course(exchange, monkeypatch, tmp_path):
    """A course's directory with what anna has handed in twice, and nbgrader's part in collecting it."""
    root = tmp_path / "grading"
    directory = SimpleNamespace(
        root=str(root),
        course_id="algo1",
        assignment_id="ps1",
        student_id="*",
        max_dir_size=1000,
        submitted_directory="submitted",
        autograded_directory="autograded",
        format_path=lambda step, student, assignment: str(root / step / student / assignment),
        get_existing_timestamp=lambda place: datetime.fromisoformat(
            Path(place, "timestamp.txt").read_text().removesuffix(" UTC")
        ),
    )
    root.mkdir()

    def collect(day, do_copy=shutil.copytree, update=True):
        """Collect of two students what they have handed in on a day."""
        one, records = exchange.Collect(), []
        one.coursedir, one.log, one._found = directory, logging.getLogger("collect"), {}
        one.update, one.before_duedate, one.do_copy = update, False, do_copy
        for student in ("anna", "ben"):
            made = tmp_path / f"inbound/{student}/{student}+ps1+{day} UTC+x"
            made.mkdir(parents=True, exist_ok=True)
            (made / "ps1.ipynb").write_text(f"{student} {day}")
            one._found[made.name] = made, exchange.changed_at(made, exchange.Allowance(10))
            records.append(
                {"username": student, "filename": made.name, "timestamp": datetime.fromisoformat(day)}
            )
        one.src_records = records
        one.recover_all()
        one.copy_files()
        return {
            str(path.relative_to(root / "submitted").parent): path.read_text()
            for path in sorted(root.rglob("*.ipynb"))
        }

    caught = logging.getLogger("collect")
    monkeypatch.setattr(caught, "level", logging.INFO)
    return SimpleNamespace(directory=directory, root=root, collect=collect, log=caught)


def test_what_nbgrader_would_collect_is_collected(exchange, course, caplog):
    first, second = "2026-11-01", "2026-11-02"
    assert course.collect(first) == {"anna/ps1": f"anna {first}", "ben/ps1": f"ben {first}"}
    assert caplog.text.count("Collecting submission: ") == 2
    assert course.collect(second, update=False)["anna/ps1"] == f"anna {first}"
    assert caplog.text.count("Submission already exists, use --update to update: ") == 2
    assert course.collect(second) == {"anna/ps1": f"anna {second}", "ben/ps1": f"ben {second}"}
    assert caplog.text.count("Updating submission: ") == 2
    assert course.collect(first)["anna/ps1"] == f"anna {second}"
    assert caplog.text.count("No newer submission to collect: ") == 2
    assert not list(course.root.glob("submitted/*/.*"))


@pytest.mark.parametrize("error", [OSError("no space"), RuntimeError("Directory size is too big")])
def test_who_cannot_be_collected_is_in_nobodys_way(course, caplog, error):
    """And keeps what was collected before."""

    def copy(source, destination):
        shutil.copytree(source, destination)
        if "anna" in source:
            raise error

    course.collect("2026-11-01")
    assert course.collect("2026-11-02", copy) == {"anna/ps1": "anna 2026-11-01", "ben/ps1": "ben 2026-11-02"}
    assert f"UTC+x is not collected: {error}" in caplog.text


@pytest.mark.parametrize(
    ("there", "renamed"), [(False, 0), (False, 1), (True, 0), (True, 1), (True, 2), (True, 3)]
)
def test_an_interrupted_collection_leaves_no_half_submission(exchange, course, monkeypatch, there, renamed):
    """Not even where the end came at once, and nothing was tidied up; the next one makes it whole."""
    if there:
        course.collect("2026-11-01")
    left, rename = [renamed], Path.rename

    def stop(source, destination):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return rename(source, destination)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stop)
        patch.setattr(exchange, "recover", lambda place: None)
        with pytest.raises(KeyboardInterrupt):
            course.collect("2026-11-02")
    assert course.collect("2026-11-02") == {"anna/ps1": "anna 2026-11-02", "ben/ps1": "ben 2026-11-02"}
    assert not list(course.root.glob("submitted/*/.*"))


def test_what_was_collected_comes_back(exchange, course, monkeypatch, caplog):
    """Where a collection ended between the two names, and there is nothing to collect any more."""
    course.collect("2026-11-01")
    place = course.root / "submitted/anna/ps1"
    place.rename(exchange.beside(place, "old"))
    assert course.collect("2026-11-01")["anna/ps1"] == "anna 2026-11-01"
    # also where the half copy cannot be removed
    place.rename(exchange.beside(place, "old"))
    exchange.beside(place, "new").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(exchange.shutil, "rmtree", MagicMock(side_effect=PermissionError("not yours")))
        assert course.collect("2026-11-01")["anna/ps1"] == "anna 2026-11-01"
    assert "anna/ps1 cannot be tidied up: not yours" in caplog.text
    # and what was to be removed does not, when a grader removes what took its place
    shutil.copytree(place, exchange.beside(place, "old"))
    exchange.recover(place)
    assert [path.name for path in place.parent.iterdir()] == ["ps1"]


@pytest.mark.parametrize("umask", [0o077, 0o007])
def test_one_grader_at_a_time(exchange, course, caplog, umask):
    """The others wait and read so, and the file is theirs as well."""
    before = os.umask(umask)
    try:
        with exchange.alone(course.directory, course.log):
            pass
    finally:
        os.umask(before)
    file = course.root / exchange.LOCK
    assert stat.S_IMODE(file.stat().st_mode) == 0o660
    assert caplog.text == ""

    done = []

    def second():
        with exchange.alone(course.directory, course.log):
            done.append(time.monotonic())

    with exchange.alone(course.directory, course.log):
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(0.2)
        assert not done
    waiting.join(10)
    assert done
    assert caplog.text.count("Another grader collects or grades; waiting ...") == 1


async def test_formgrader_does_not_wait_for_ever(exchange, course, monkeypatch):
    """Its server answers nobody meanwhile."""
    monkeypatch.setattr(exchange, "PATIENCE", -1)
    with (
        exchange.alone(course.directory, course.log),
        pytest.raises(TimeoutError, match="another grader still collects or grades; try again later"),
        exchange.alone(course.directory, course.log),
    ):
        pass
    # and who gave up holds nothing
    with exchange.alone(course.directory, course.log):
        pass


def test_autograding_is_for_one_at_a_time(exchange, course):
    """However often nbgrader loads its configuration."""
    for _ in range(2):
        exchange.share_work()

    def graded():
        with pytest.raises(BlockingIOError), (course.root / exchange.LOCK).open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        runs.append("graded")

    runs = []
    converter = exchange.Autograde()
    converter.coursedir, converter.log, converter.graded = course.directory, course.log, graded
    converter.start()
    assert runs == ["graded"]


def test_no_request_of_formgrader_inherits_a_session(exchange):
    """What cannot be closed is forgotten; where nothing was asked of the gradebook, there is none."""
    exchange.share_work()
    handler = sys.modules["nbgrader.server_extensions.formgrader.base"].BaseHandler()
    handler.settings = {"nbgrader_gradebook": None}
    handler.on_finish()
    assert handler.settings == {"nbgrader_gradebook": None}
    gradebook = MagicMock()
    handler.settings = {"nbgrader_gradebook": gradebook}
    handler.on_finish()
    gradebook.close.assert_called_once_with()
    assert handler.settings == {"nbgrader_gradebook": gradebook}
    gradebook.close.side_effect = OSError("server closed the connection unexpectedly")
    with pytest.raises(OSError, match="closed the connection"):
        handler.on_finish()
    assert handler.settings == {"nbgrader_gradebook": None}


def test_assignments_lie_below_their_course(exchange, monkeypatch, tmp_path):
    """In the home, where those of several courses come together."""
    for name, value in (
        ("CAMPUS_COURSE", "algo1"),
        ("CAMPUS_EXCHANGE", str(tmp_path)),
        ("CAMPUS_COURSE_ROLE", "student"),
        ("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime")),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(exchange, "get_username", lambda: "anna")
    config = MagicMock()
    exchange.configure(config)
    assert config.Exchange.path_includes_course is True
    assert config.Exchange.root == str(tmp_path / "runtime/exchange")


@pytest.mark.parametrize("random", [True, False])
def test_only_what_is_in_the_box_is_listed_as_handed_in(exchange, submission, monkeypatch, tmp_path, random):
    """That is what is in nbgrader's cache, which it fills first."""
    name = f"anna+ps1+2026-11-02 10:00:00.0 UTC{'+x' if random else ''}"
    entry = tmp_path / "cache/anna+ps1+2026-11-02 10:00:00.0 UTC"

    def copy_files(self):
        shutil.copytree(submission, Path(self.inbound_path, self.assignment_filename))
        shutil.copytree(submission, entry)

    def submit():
        one = exchange.Submit()
        one.inbound_path, one.cache_path = str(submission.parent), str(tmp_path / "cache")
        one.assignment_filename, one.add_random_string = name, random
        one.copy_files()

    monkeypatch.setattr(exchange.ExchangeSubmit, "copy_files", copy_files, raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(exchange, "open_to_group", MagicMock(side_effect=OSError("quota")))
        with pytest.raises(OSError, match="quota"):
            submit()
    assert not entry.exists()
    assert [path.name for path in submission.parent.iterdir()] == [submission.name]
    submit()
    assert (entry / "ps1.ipynb").is_file()
    assert (submission.parent / name / "ps1.ipynb").is_file()
    # an earlier one stays
    with pytest.raises(FileExistsError):
        submit()
    assert entry.is_dir()


def test_the_configuration_is_loaded_again_and_again(monkeypatch):
    """And leaves the module's directory among those of modules once."""
    module, configured = MagicMock(), []
    module.configure = configured.append
    monkeypatch.setitem(sys.modules, "campus_nbgrader", module)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for _ in range(2):
        runpy.run_path(
            str(ROOT / "files/images/notebook/nbgrader_config.py"), init_globals={"get_config": lambda: "c"}
        )
    assert configured == ["c", "c"]
    assert sys.path.count("/opt/campus") == 1


async def test_student_code_knows_what_it_is_run_for(exchange, monkeypatch, tmp_path):
    """By the variables that nbgrader documents for cells with tests; and nothing of the grader's."""

    async def pre_start(self, **kwargs):
        return kwargs

    monkeypatch.setattr(exchange.AsyncKernelManager, "_async_pre_start_kernel", pre_start, raising=False)
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    monkeypatch.setenv("CAMPUS_GRADEBOOK", "postgresql://algo1:secret@gradebook/algo1")
    monkeypatch.delenv("NBGRADER_VALIDATING", raising=False)
    manager = object.__new__(exchange.SandboxedKernelManager)
    manager.kernel_name, manager._scratch = "python3", SimpleNamespace(name=str(tmp_path))
    environment = (await manager._async_pre_start_kernel())["env"]
    assert environment["NBGRADER_EXECUTION"] == "autograde"
    assert not {"CAMPUS_GRADEBOOK", "NBGRADER_VALIDATING"} & set(environment)
