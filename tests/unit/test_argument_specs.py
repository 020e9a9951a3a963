"""Every role's argument_specs describes exactly its defaults."""

from __future__ import annotations

import pathlib

import pytest
import yaml

ROLES = pathlib.Path(__file__).parents[2] / "roles"
TYPES = {
    "str": str,
    "int": int,
    "float": (int, float),
    "bool": bool,
    "list": list,
    "dict": dict,
    "path": str,
    "raw": object,
}


def load(path: pathlib.Path) -> dict:
    """Return a YAML file's content, empty when there is none."""
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.exists() else {}


def options(role: str) -> dict:
    """Return the options of all entry points of a role."""
    specs = load(ROLES / role / "meta" / "argument_specs.yml").get("argument_specs", {})
    return {name: option for entry in specs.values() for name, option in (entry.get("options") or {}).items()}


@pytest.fixture(params=sorted(path.name for path in ROLES.iterdir() if path.is_dir()))
def role(request) -> str:
    """Return each role's name."""
    return request.param


def test_specs_equal_defaults(role):
    defaults = load(ROLES / role / "defaults" / "main.yml")
    described = {name: option["default"] for name, option in options(role).items() if "default" in option}
    assert described == defaults


def test_what_has_no_default_is_required(role):
    lacking = [
        name
        for name, option in options(role).items()
        if "default" not in option and not option.get("required")
    ]
    assert lacking == []


def test_names_begin_with_the_role(role):
    assert [name for name in options(role) if not name.startswith(f"{role}_")] == []


def test_options_are_described_and_typed(role):
    for name, option in options(role).items():
        assert option.get("description"), f"{name} has no description"
        assert option.get("type") in TYPES, f"{name} has no type"
        default = option.get("default")
        if default is not None and "{{" not in str(default):
            assert isinstance(default, TYPES[option["type"]]), f"the default of {name} is no {option['type']}"
            assert option["type"] != "int" or not isinstance(default, bool), (
                f"the default of {name} is no int"
            )
        if "choices" in option and "{{" not in str(default):
            values = default if isinstance(default, list) else [default]
            assert set(values) <= {*option["choices"]}, f"the default of {name} is none of its choices"


def test_role_is_described(role):
    info = load(ROLES / role / "meta" / "main.yml")["galaxy_info"]
    assert info["author"] == "Campus JupyterHub contributors"
    assert info["license"] == "BSD-3-Clause"
    assert info["description"]
