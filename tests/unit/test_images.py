"""The cluster's images: what is built, under which names, and which kernels notebooks can have."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.template import trust_as_template
from inventory import ROOT, Inventory

ROLE = ROOT / "roles/images"
SPEC = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
KERNELS = SPEC["images_kernels"]["choices"]
NOTEBOOK = ROOT / "files/images/notebook"
# Contexts that are built only if images_extra names them.
OVERLAYS = {"docker-stacks-overlay", "ihaskell-overlay"}

FILTERS = importlib.util.spec_from_file_location("images_filter", ROOT / "plugins/filter/images.py")
filters = importlib.util.module_from_spec(FILTERS)
FILTERS.loader.exec_module(filters)


def plan(**variables: Any) -> dict[str, dict[str, Any]]:
    """The images by name, as the role plans them with these variables."""
    inventory = Inventory(ROOT / "tests/inventories/variants", extra=variables)
    defaults = {
        **inventory.load(ROLE / "defaults/main.yml"),
        **inventory.load(ROLE / "vars/main.yml"),
        "images_registry_address": "registry.test:5000",
        "role_path": str(ROLE),
    }
    planned = inventory.templar("m-1", **defaults).template(trust_as_template("{{ __images_plan }}"))
    return {image["name"]: image for image in planned}


def packages(archive: str) -> dict[str, list[str]]:
    """What kernels.sh installs from `debian` or `pypi`, by kernel."""
    script = (NOTEBOOK / "kernels.sh").read_text().partition("esac")[0]
    lines = re.findall(r"^    ([a-z]+)\) (.*);;", script, re.MULTILINE)
    return {
        kernel: " ".join(re.findall(rf'{archive}="\${archive} ([^"]*)"', line)).split()
        for kernel, line in lines
    }


def test_the_script_knows_the_kernels_that_can_be_asked_for() -> None:
    assert sorted(packages("debian")) == sorted(KERNELS)
    brings = {kernel: packages("debian")[kernel] + packages("pypi")[kernel] for kernel in KERNELS}
    assert [kernel for kernel in KERNELS if not brings[kernel]] == ["python"]


def test_kernels_of_pypi_have_exact_versions() -> None:
    pinned = re.findall(r"^([\w-]+)==", (NOTEBOOK / "constraints.txt").read_text(), re.MULTILINE)
    names = {name.replace("_", "-") for name in pinned}
    wanted = {name for found in packages("pypi").values() for name in found}
    assert wanted
    assert wanted <= names


@pytest.mark.parametrize("value", [["python", "perl"], ["Python"], "all"])
def test_an_unknown_kernel_is_refused(value: Any) -> None:
    spec = {"images_kernels": SPEC["images_kernels"]}
    assert ArgumentSpecValidator(spec).validate({"images_kernels": KERNELS}).error_messages == []
    assert ArgumentSpecValidator(spec).validate({"images_kernels": value}).error_messages != []


def test_other_kernels_make_other_notebook_images_and_no_other_hub() -> None:
    before, after = plan(), plan(images_kernels=["python", "bash"])
    assert after["notebook"]["args"]["KERNELS"] == "python bash"
    changed = {name for name in after if after[name]["tag"] != before[name]["tag"]}
    assert changed == {"notebook", "notebook-teacher"}


def test_overlays_are_built_only_if_asked_for() -> None:
    contexts = {path.name for path in (ROOT / "files/images").iterdir()}
    assert contexts - set(plan()) == OVERLAYS


def test_an_overlay_is_built_on_the_image_that_it_is_for() -> None:
    haskell = {"name": "notebook-haskell", "context": "ihaskell-overlay", "parent": "notebook"}
    planned = plan(images_extra=[haskell])
    assert planned["notebook-haskell"]["base"] == planned["notebook"]["image"]
    assert list(planned).index("notebook-haskell") > list(planned).index("notebook")


def imported_roles(play: dict[str, Any]) -> list[tuple[str, str]]:
    """The roles of a play and its tasks, each with the file of tasks that it begins with."""
    tasks = [
        task[f"ansible.builtin.{way}_role"]
        for task in play.get("tasks", [])
        for way in ("import", "include")
        if f"ansible.builtin.{way}_role" in task
    ]
    roles = [{"name": role["role"]} for role in play.get("roles", [])]
    return [(role["name"], role.get("tasks_from", "main")) for role in roles + tasks]


def test_no_hub_offers_an_image_that_a_server_lacks() -> None:
    """The play that brings images ends the run for all when one server fails, and comes before the hub's."""
    plays = yaml.safe_load((ROOT / "playbooks/site.yml").read_text())
    roles = [imported_roles(play) for play in plays]
    pull = ("campus.jupyterhub.images", "pull")
    pulls = [number for number, found in enumerate(roles) if pull in found]
    hubs = [number for number, found in enumerate(roles) if "campus.jupyterhub.hub" in dict(found)]
    assert (len(pulls), len(hubs)) == (1, 1)
    assert plays[pulls[0]]["hosts"].split(":")[0] == "swarm"
    assert plays[pulls[0]]["any_errors_fatal"] is True
    assert pulls[0] < hubs[0]


def test_of_two_builds_at_once_one_makes_the_base_system(tmp_path: Path) -> None:
    """A stand-in for Docker keeps one file for each image, and the slower of the two finds it."""
    images = tmp_path / "images"
    images.mkdir()
    docker = tmp_path / "docker"
    docker.write_text(
        "#!/bin/sh\ncase $1 in\n"
        f'image) test -e "{images}/$3" ;;\nimport) cp "$2" "{images}/$3" && echo "$3" ;;\nesac\n'
    )
    docker.chmod(0o755)

    def make(name: str) -> subprocess.Popen[str]:
        rootfs = tmp_path / name
        command = ["sh", "-c", 'sleep 0.5; echo "$0" > "$1"', name, rootfs]
        return subprocess.Popen(
            [ROLE / "files/make-os", tmp_path / "lock", rootfs, "os", *command],
            env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            text=True,
        )

    builds = {name: make(name) for name in ("one.tar", "two.tar")}
    said = {name: build.communicate(timeout=30)[0].strip() for name, build in builds.items()}
    assert [build.returncode for build in builds.values()] == [0, 0]
    assert sorted(said.values()) == ["", "os"]
    assert said[(images / "os").read_text().strip()] == "os"
    assert not [*tmp_path.glob("*.tar")]


def test_a_base_system_that_failed_is_not_imported(tmp_path: Path) -> None:
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\ntest "$1" = import\n')
    docker.chmod(0o755)
    rootfs = tmp_path / "os.tar"
    made = subprocess.run(
        [
            ROLE / "files/make-os",
            tmp_path / "lock",
            rootfs,
            "os",
            "sh",
            "-c",
            f"echo half > {rootfs}; exit 3",
        ],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (made.returncode, made.stdout) == (3, "")
    assert not rootfs.exists()


def test_another_serial_reaches_debians_packages() -> None:
    """The build cache takes a line for known unless an argument before it is another one."""
    lines = (ROOT / "files/images/base/Dockerfile").read_text().splitlines()
    run = next(number for number, line in enumerate(lines) if line.startswith("RUN"))
    assert "ARG SERIAL=" in lines[:run]
    build = (ROLE / "tasks/image.yml").read_text()
    assert "'SERIAL': images_serial | string" in build


def test_images_of_earlier_runs_on_a_node() -> None:
    """What is in use, wanted, somebody else's or known to somebody under another name stays."""
    ours = "192.0.2.1:5000/campus"

    def image(number: int, *digests: str, tags: list[str] | None = None) -> dict[str, Any]:
        return {"Id": f"sha256:{number}", "RepoDigests": [*digests], "RepoTags": tags}

    images = [
        image(1, f"{ours}/hub@sha256:old"),
        image(2, f"{ours}/hub@sha256:new"),
        image(3, f"{ours}/notebook@sha256:used"),
        image(4, "elsewhere/hub@sha256:old"),
        image(5, f"{ours}/notebook@sha256:kept", tags=["mine:1"]),
        image(6, tags=[f"{ours}/notebook:old", f"{ours}/notebook:older"]),
        image(7, tags=["<none>:<none>"]),
        {"Id": "sha256:8", "RepoDigests": None, "RepoTags": None},
    ]
    found = filters.images_to_remove(images, [{"ImageID": "sha256:3"}], ours, [f"{ours}/hub@sha256:new"])
    assert found == [
        {"id": "sha256:1", "name": f"{ours}/hub@sha256:old"},
        {"id": "sha256:6", "name": f"{ours}/notebook:old"},
    ]


def test_tags_of_earlier_runs_in_the_registry() -> None:
    root = "/srv/registry/docker/registry/v2/repositories/campus"
    paths = [
        f"{root}/hub",
        f"{root}/hub/_manifests/tags",
        f"{root}/hub/_manifests/tags/old",
        f"{root}/hub/_manifests/tags/new",
        f"{root}/proxy/_manifests/tags/new",
        f"{root}/hub/_layers/sha256/new",
    ]
    found = filters.registry_tags_to_remove(paths, ["hub:new"])
    assert found == [f"{root}/hub/_manifests/tags/old", f"{root}/proxy/_manifests/tags/new"]
