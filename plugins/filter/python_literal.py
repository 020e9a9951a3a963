"""Filter that writes a value as Python source, for templated Python files."""

from __future__ import annotations

import json
from pprint import pformat


def python_literal(value):
    """Write a value as a Python literal.

    Args:
        value: anything that JSON can hold; Ansible's own string types included.

    Returns:
        str: Python source of an equal value.
    """
    return pformat(json.loads(json.dumps(value)), sort_dicts=False)


class FilterModule:
    """Ansible's entry point."""

    def filters(self):
        """Return the filters by name."""
        return {"python_literal": python_literal}
