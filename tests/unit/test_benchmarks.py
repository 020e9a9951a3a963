"""The benchmarks' own arithmetic and stand-ins; what they measure is not for a unit test."""

import asyncio
import json
import os
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import docker
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cluster import wait_for
from docker.types import ContainerSpec, TaskTemplate
from hypothesis import given
from hypothesis import strategies as st
from traitlets.config import PyFileConfigLoader

sys.path.append(str(Path(__file__).resolve().parents[2]))

from benchmarks import ROOT, plot
from benchmarks.burst import COLUMNS, judge
from benchmarks.docker_api import Latencies, address_of, kind_of
from benchmarks.driver import Driver
from benchmarks.lab import CONFIG_TARGET, hub_spec
from benchmarks.loopback import ADDRESS, free_port, running
from benchmarks.report import Report, figure, median, quantile

NUMBERS = st.lists(st.floats(0, 1000), min_size=1)
RECORDED = {
    "requests": {"create": [0.01], "tasks": [0.001, 0.002]},
    "starts": [[["new", 0.0], ["running", 0.1], ["answers", 0.2]]],
    "ends": [0.1],
}


# --- report.py ---


@given(NUMBERS, st.floats(0, 1))
def test_quantile_is_the_smallest_sample_that_enough_do_not_exceed(samples, share):
    found = quantile(samples, share)
    assert found in samples
    assert sum(sample <= found for sample in samples) >= share * len(samples)
    smaller = [sample for sample in samples if sample < found]
    assert not smaller or len(smaller) < share * len(samples)


def test_quantiles_of_a_few():
    samples = [3.0, 1.0, 2.0, 4.0]
    assert [quantile(samples, share) for share in (0, 0.25, 0.5, 0.75, 0.95, 1)] == [1, 1, 2, 3, 4, 4]
    assert median(samples) == 2.5
    assert median(samples[:3]) == 2


@pytest.mark.parametrize("function", [median, lambda samples: quantile(samples, 0.5)])
def test_no_sample_has_no_figure(function):
    with pytest.raises(ValueError, match="no sample"):
        function([])


@pytest.mark.parametrize(
    ("value", "text"), [(0.01234, "0.0123"), (1.0999, "1.1"), (99.94, "99.9"), (1234.5, "1,234")]
)
def test_figure(value, text):
    assert figure(value) == text


@pytest.mark.parametrize(
    ("value", "relation", "met"),
    [(1.1, "<=", True), (1.1000001, "<=", False), (1.1, ">=", True), (1.0, ">=", False), (1.1, "<", False)],
)
def test_a_goal_is_judged_by_what_was_measured_not_by_what_is_printed(value, relation, met):
    report = Report("try", "s")
    report.goal("one", value, relation, 1.1)
    assert report.as_dict()["goals"] == [
        {"name": "one", "value": value, "bound": f"{relation} 1.1", "met": met}
    ]


def small_report(name="burst"):
    """Two sides and two cases, in the form of a burst; the figures are made up."""
    report = Report(name, "s", columns=COLUMNS, docker="26.1.5")
    report.notes.append("made up")
    for side, seconds in (("upstream", 2.0), ("ours", 1.0)):
        for case in ("N = 10", "N = 50"):
            report.add(side, case, seconds, seconds * 2, seconds * 3)
            report.measure(side, case, rate=10 / seconds, lost=0, hub_cpu=seconds, health=[0.1, 0.2])
            report.measure(side, case, rate=12 / seconds, lost=0, hub_cpu=seconds, health=[0.3])
    judge(report)
    return report


def test_report_in_a_file_and_back(tmp_path):
    report = small_report()
    path = report.finish(tmp_path)
    written = json.loads(path.read_text())
    assert path.name == "burst.json"
    assert written["samples"]["ours"]["N = 10"] == [1.0, 2.0, 3.0]
    assert written["machine"]["docker"] == "26.1.5"
    assert all(set(goal) == {"name", "value", "bound", "met"} for goal in written["goals"])
    loaded = Report.load(path)
    assert json.loads(json.dumps(loaded.as_dict())) == written
    assert loaded.rows() == report.rows()
    assert loaded.goal_rows() == report.goal_rows()


def test_table_has_the_measures():
    head, *rows = small_report().rows()
    assert dict(zip(head, rows[2], strict=True)) == {
        "side": "ours",
        "case": "N = 10",
        "samples": "3",
        "median s": "2",
        "p95 s": "3",
        "p99 s": "3",
        "starts/s": "10",
        "lost": "0",
        "hub CPU s": "1",
        "health p99 s": "0.3",
    }


def test_goals_of_a_burst():
    goals = small_report().goals
    assert [(goal.value, goal.bound, goal.met) for goal in goals] == [
        (2.0, ">= 2", True),
        (0, "<= 0", True),
        (0.3, "< 1", True),
        (0.3, "< 1", True),
    ]


def test_a_side_that_lost_everything_is_shown_and_compared_with_nobody():
    report = Report("burst", "s", columns=COLUMNS)
    for side, samples in (("upstream", []), ("ours", [1.0])):
        report.add(side, "N = 1", *samples)
        report.measure(side, "N = 1", rate=len(samples), lost=1 - len(samples), hub_cpu=1, health=[0.1])
    judge(report)
    assert report.rows()[1] == ["upstream", "N = 1", "0", "-", "-", "-", "0", "1", "1", "0.1"]
    assert [goal.bound for goal in report.goals] == ["<= 0", "< 1"]
    assert "upstream lost all starts" in report.notes[-1]


# --- driver.py ---


async def test_health_is_asked_while_it_does_not_answer_and_all_answers_count():
    asked, enough, listens = [], asyncio.Event(), asyncio.Event()

    async def health(_request):
        asked.append(None)
        if len(asked) == 3:
            enough.set()
        await listens.wait()
        return web.Response()

    async def start(request):
        await enough.wait()
        # the answers to all questions are still missing when the last start is ready
        asyncio.get_running_loop().call_later(0.2, listens.set)
        return web.Response(status=201 if request.match_info["name"] == "alice" else 500, text="no")

    app = web.Application()
    app.router.add_get("/hub/health", health)
    app.router.add_post("/hub/api/users/{name}/server", start)
    async with TestServer(app) as server:
        driver = Driver(str(server.make_url("/hub")), "token", os.getpid(), "")
        found = await driver.start(["alice", "bob"], {})
        await driver.session.close()
    assert list(found["seconds"]) == ["alice"]
    assert found["failed"] == {"bob": "500 no"}
    assert len(found["health"]) == len(asked) >= 3


# --- plot.py ---


@pytest.fixture
def drawn(tmp_path):
    """Plots of every question, and the README."""
    results, readme, plots = tmp_path / "results", tmp_path / "README.md", tmp_path / "plots"
    readme.write_text(f"before\n\n{plot.BEGIN}\nold\n{plot.END}\n\nafter\n")
    for name in plot.QUESTIONS:
        small_report(name).finish(results)
    arguments = results, readme, plots
    plot.main(*arguments)
    return arguments


def test_plots_need_nothing_from_elsewhere(drawn):
    paths = list(drawn[2].iterdir())
    assert {path.stem for path in paths} == set(plot.QUESTIONS)
    for path in paths:
        text = path.read_text()
        assert ET.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314 - our own
        assert not re.findall(r"(?:https?:)?//(?!www\.w3\.org/)\w", text)
        assert "<script" not in text


def test_the_same_results_give_the_same_files(drawn):
    _, readme, plots = drawn
    before = {path: path.read_text() for path in (readme, *plots.iterdir())}
    plot.main(*drawn)
    assert {path: path.read_text() for path in before} == before


def test_readme_keeps_what_is_around_the_figures(drawn):
    text = drawn[1].read_text()
    assert text.startswith(f"before\n\n{plot.BEGIN}\n")
    assert text.endswith(f"{plot.END}\n\nafter\n")
    assert "old" not in text
    assert "docker 26.1.5" in text
    assert "| N = 50: ours / upstream, starts a second | >= 2 | 2 | yes |" in text


def test_a_question_that_was_not_measured_again_keeps_its_figures(drawn):
    results, readme, _ = drawn
    before = readme.read_text()
    for path in results.glob("*.json"):
        if path.stem != "files":
            path.unlink()
    plot.main(*drawn)
    assert readme.read_text() == before


def test_nothing_measured_leaves_the_readme_alone(tmp_path):
    with pytest.raises(SystemExit, match="no results"):
        plot.main(tmp_path, tmp_path / "README.md", tmp_path / "plots")


def test_the_readme_has_the_section():
    text = plot.README.read_text()
    assert text.count(plot.BEGIN) == text.count(plot.END) == 1


# --- docker_api.py ---


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("POST", "/v1.45/services/create", "create"),
        ("GET", "/services", "services"),
        ("GET", "/v1.45/services/abc", "service"),
        ("DELETE", "/v1.45/services/abc", "remove"),
        ("GET", "/v1.45/tasks", "tasks"),
        ("GET", "/version", ""),
    ],
)
def test_kind_of(method, path, kind):
    assert kind_of(method, path) == kind


@given(st.text())
def test_every_server_has_an_address_on_loopback_that_is_no_host_of_its_own(name):
    first, *rest = map(int, address_of(name).split("."))
    assert first == 127
    assert 1 <= rest[0] <= 254
    assert 1 <= rest[2] <= 254


def test_latencies_come_in_the_same_order_every_time():
    first, second = (Latencies(RECORDED) for _ in range(2))
    drawn = [first.request("tasks") for _ in range(4)]
    assert sorted(drawn) == [0.001, 0.001, 0.002, 0.002]
    assert drawn == [second.request("tasks") for _ in range(4)]
    assert first.request("version") == 0


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """docker-py, with the stand-in at the other end."""
    directory, port = tmp_path_factory.mktemp("engine"), free_port()
    latencies = directory / "latencies.json"
    latencies.write_text(json.dumps(RECORDED))
    command = ["-m", "benchmarks.docker_api", "--port", str(port), "--latencies", str(latencies)]
    url = f"{ADDRESS}:{port}"
    with running(command, f"http://{url}/version", directory / "log", PYTHONPATH=str(ROOT)):
        client = docker.APIClient(f"tcp://{url}", version="auto", timeout=10)
        yield client
        client.close()


@pytest.fixture
def service(engine):
    """A service of the name `bench-alice`."""
    created = engine.create_service(
        TaskTemplate(ContainerSpec("notebook", labels={"user": "alice"})),
        name="bench-alice",
        labels={"prefix": "bench"},
    )
    yield created["ID"]
    if engine.services():
        engine.remove_service(created["ID"])
    wait_for("its task is gone", lambda: not engine.tasks(), timeout=10, pause=0.05)


@pytest.mark.parametrize(
    "filters",
    [
        {"label": "user=alice"},
        {"label": ["prefix=bench", "user"]},
        {"service": "bench-alice"},
        {"name": ["bench-bob", "bench-al"]},
        {"desired-state": "running"},
    ],
)
def test_tasks_are_found(engine, service, filters):
    (task,) = engine.tasks(filters=filters)
    assert task["ServiceID"] == service
    assert task["DesiredState"] == "running"


@pytest.mark.parametrize(
    "filters", [{"label": "user=bob"}, {"label": ["prefix=bench", "no"]}, {"name": "alice"}]
)
def test_tasks_of_others_are_not(engine, service, filters):
    assert engine.tasks(filters=filters) == []


def test_a_name_belongs_to_one_service(engine, service):
    with pytest.raises(docker.errors.APIError, match="AlreadyExists") as raised:
        engine.create_service(TaskTemplate(ContainerSpec("notebook")), name="bench-alice")
    assert raised.value.status_code == 409


def test_service_and_node(engine, service):
    assert engine.inspect_service("bench-alice")["ID"] == service
    assert engine.inspect_service(service)["Spec"]["Labels"] == {"prefix": "bench"}
    assert engine.inspect_node("node1")["Status"]["State"] == "ready"
    with pytest.raises(docker.errors.NotFound):
        engine.inspect_node("node9")


def test_a_removed_service_is_gone(engine, service):
    engine.remove_service(service)
    assert engine.services() == []
    with pytest.raises(docker.errors.NotFound):
        engine.inspect_service(service)
    with pytest.raises(docker.errors.NotFound):
        engine.remove_service("bench-alice")
    assert all(task["DesiredState"] == "remove" for task in engine.tasks())


# --- lab.py ---


def test_hub_of_a_benchmark_is_the_deployed_one_without_its_name_and_data():
    file = {"ConfigID": "1", "ConfigName": "jupyterhub_config", "File": {"Name": "/etc/a.py"}}
    deployed = {
        "Name": "campus_hub",
        "Labels": {"com.docker.stack.namespace": "campus"},
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": "hub",
                "User": "990:991",
                "Labels": {"com.docker.stack.namespace": "campus"},
                "Env": ["DOCKER_HOST=tcp://docker-api:2375"],
                "Mounts": [{"Type": "volume", "Source": "data", "Target": "/srv/jupyterhub"}],
                "Configs": [file],
                "Secrets": [{"SecretName": "accounts_token"}],
            },
            "Networks": [{"Target": "control", "Aliases": ["hub"]}, {"Target": "notebooks"}],
            "Placement": {"Constraints": ["node.role==manager"]},
        },
        "EndpointSpec": {"Mode": "dnsrr"},
    }
    before = json.dumps(deployed)
    spec = hub_spec(deployed, "bench-ours", "2", {"side": "ours"})
    assert json.dumps(deployed) == before
    assert "namespace" not in json.dumps(spec)
    container = spec["TaskTemplate"]["ContainerSpec"]
    assert spec["Name"] == "bench-ours"
    assert container["Mounts"] == []
    assert container["Args"] == ["jupyterhub", "-f", CONFIG_TARGET]
    assert container["Env"] == ["DOCKER_HOST=tcp://docker-api:2375", 'BENCH={"side": "ours"}']
    assert container["Configs"] == [
        file,
        {
            "ConfigID": "2",
            "ConfigName": "bench-ours",
            "File": {"Name": CONFIG_TARGET, "UID": "990", "GID": "991", "Mode": 0o444},
        },
    ]
    assert [network["Aliases"] for network in spec["TaskTemplate"]["Networks"]] == [["bench-ours"]] * 2
    # as the deployed one
    assert container["Secrets"] == [{"SecretName": "accounts_token"}]
    assert spec["TaskTemplate"]["Placement"] == {"Constraints": ["node.role==manager"]}


# --- jupyterhub_config.py ---


@pytest.fixture
def side_spawner(monkeypatch, tmp_path):
    """Makes a spawner of one side from the benchmark's configuration."""

    def make(side):
        settings = {
            "side": side,
            "deployed": False,
            "token": "token",
            "directory": str(tmp_path),
            "bind_url": "http://127.0.0.1:8081",
            "connect_url": "http://127.0.0.1:8081",
            "accounts_url": "http://127.0.0.1:8080",
            "accounts_token": "token",
            "constraints": ["node.hostname==node3"],
        }
        monkeypatch.setenv("BENCH", json.dumps(settings))
        config = PyFileConfigLoader("jupyterhub_config.py", str(ROOT / "benchmarks")).load_config()
        user = SimpleNamespace(name="alice", url="/user/alice/", escaped_name="alice")
        return config.JupyterHub.spawner_class(config=config, user=user)

    return make


def test_ours_takes_over_nothing_of_upstream(side_spawner):
    ours = side_spawner("ours")
    assert ours.extra_container_spec == {}
    assert ours.extra_placement_spec == {}
    assert ours.placement_constraints == ["node.hostname==node3"]
    assert ours.prefix == "bench-ours"


def test_upstream_has_the_same_image_network_and_node(side_spawner):
    ours, upstream = side_spawner("ours"), side_spawner("upstream")
    assert upstream.extra_container_spec["user"] == "65000:65000"
    assert upstream.extra_placement_spec == {"constraints": ["node.hostname==node3"]}
    assert (upstream.image, upstream.network_name) == (ours.image, ours.network_name)
    assert upstream.prefix == "bench-upstream"
