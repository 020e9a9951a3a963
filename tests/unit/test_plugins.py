"""The small filters, and the module behind the role `stack`."""

import ast
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def load(path):
    """Import a plugin by its file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


stack = load(ROOT / "plugins/filter/stack.py")
stack_info = load(ROOT / "plugins/modules/stack_info.py")
nfs = load(ROOT / "plugins/filter/nfs.py")
python_literal = load(ROOT / "plugins/filter/python_literal.py").python_literal


def test_content_names_change_with_the_content_only():
    first = stack.content_names({"token": "a", "key": "b"}, "hub")
    second = stack.content_names({"token": "a", "key": "c"}, "hub")
    assert first["token"] == second["token"]
    assert first["key"] != second["key"]
    assert first["token"].startswith("hub_token_")


def test_content_names_fit_into_swarms_limit():
    name = stack.content_names({"n" * 100: "content"}, "hub")["n" * 100]
    assert len(name) == 64


def test_health_is_asked_for_as_often_as_the_engine_can_tell():
    services = {"a": {"image": "a", "healthcheck": {"test": ["CMD", "true"], "interval": "10s"}}, "b": {}}
    assert stack.with_health(services, {}) == services
    times = {"interval": "30s", "start_interval": "2s"}
    asked = stack.with_health(services, times)
    assert asked["a"]["healthcheck"] == {"test": ["CMD", "true"], **times}
    assert asked["b"] == {"healthcheck": times}
    assert services["a"]["healthcheck"]["interval"] == "10s"


def test_external_objects_of_names_and_of_a_mapping():
    assert stack.external_objects(["control"]) == {"control": {"external": True, "name": "control"}}
    assert stack.external_objects({"a": "hub_a_1"}) == {"a": {"external": True, "name": "hub_a_1"}}


@pytest.mark.parametrize("value", ["o'brien", 'a"b', "Jörg\n", True, None, 3, ["x", {"y": False}]])
def test_python_literal_is_the_value(value):
    assert ast.literal_eval(python_literal(value)) == value


def service(replicas=1, image="hub@sha256:new", force=0):
    task_template = {"ContainerSpec": {"Image": image}, "ForceUpdate": force}
    return {
        "Spec": {
            "Name": "s_hub",
            "Mode": {"Replicated": {"Replicas": replicas}},
            "TaskTemplate": task_template,
        }
    }


def task(state="running", desired="running", image="hub@sha256:new", error="", updated="2026-01-01"):
    return {
        "DesiredState": desired,
        "Status": {"State": state, "Err": error},
        "Spec": {"ContainerSpec": {"Image": image}},
        "UpdatedAt": updated,
    }


def test_a_running_task_of_the_present_specification_is_enough():
    assert stack_info.service_problem(service(), [task()], 3) == ""


def test_the_old_task_of_an_updated_service_does_not_count():
    assert (
        stack_info.service_problem(service(), [task(image="hub@sha256:old")], 3) == "s_hub: 0 of 1 tasks run"
    )


def test_the_newest_error_is_told():
    tasks = [
        task("rejected", "shutdown", error="old", updated="2026-01-01"),
        task("rejected", "shutdown", error="no such image", updated="2026-01-02"),
    ]
    assert stack_info.service_problem(service(), tasks, 3) == "s_hub: 0 of 1 tasks run (no such image)"


def test_a_global_service_wants_a_task_on_each_node_that_it_has_one_for():
    one_of_two = [task(), task("starting")]
    spec = service()
    spec["Spec"]["Mode"] = {"Global": {}}
    assert stack_info.service_problem(spec, one_of_two, 2) == "s_hub: 1 of 2 tasks run"
    assert stack_info.service_problem(spec, [], 2) == "s_hub: 0 of 1 tasks run"


def test_only_paths_that_differ_are_set():
    paths = [
        {"name": ""},
        {"name": "homes", "mode": "0711"},
        {"name": "hub", "owner": 991, "group": 991},
        {"name": "new", "state": "touch"},
    ]
    found = [
        {"path": "/srv/nfs", "uid": 0, "gid": 0, "mode": "0755"},
        {"path": "/srv/nfs/homes", "uid": 0, "gid": 0, "mode": "0755"},
        {"path": "/srv/nfs/hub", "uid": 991, "gid": 991, "mode": "0755"},
    ]
    chosen = nfs.nfs_paths_to_set(paths, "/srv/nfs", found)
    assert [(one["path"], one["state"]) for one in chosen] == [
        ("/srv/nfs/homes", "directory"),
        ("/srv/nfs/new", "touch"),
    ]
