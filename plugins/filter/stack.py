"""Filters for compose files."""

from __future__ import annotations

import hashlib


def content_names(contents, stack):
    """Name every secret or config after its content.

    A swarm secret or config can't be changed, so a new content needs a new name.

    Args:
        contents (dict[str, str]): short name to content.
        stack (str): name of the stack, the first part of each name.

    Returns:
        dict[str, str]: short name to ``STACK_NAME_DIGEST``, cut to the 64 characters that swarm allows.
    """
    names = {}
    for name, content in contents.items():
        digest = hashlib.sha256(str(content).encode()).hexdigest()[:12]
        names[name] = f"{stack}_{name}"[: 64 - len(digest) - 1] + f"_{digest}"
    return names


def external_objects(names):
    """Write existing swarm objects for the top level of a compose file.

    Args:
        names (dict[str, str] | list[str]): short name to swarm name, or names that are both.

    Returns:
        dict[str, dict]: short name to ``{external: true, name: …}``.
    """
    pairs = names.items() if isinstance(names, dict) else ((name, name) for name in names)
    return {short: {"external": True, "name": name} for short, name in pairs}


def with_health(services, times):
    """Set how often services are asked for their health.

    Args:
        services (dict[str, dict]): services of a compose file.
        times (dict[str, str]): keys of `healthcheck` and their values.

    Returns:
        dict[str, dict]: the services; how each is asked stays as they or their images say it. One that nobody
            says it of has no health.
    """
    return {
        name: {**service, "healthcheck": {**service.get("healthcheck", {}), **times}} if times else service
        for name, service in services.items()
    }


class FilterModule:
    """Ansible's entry point."""

    def filters(self):
        """Return the filters by name."""
        return {
            "content_names": content_names,
            "external_objects": external_objects,
            "with_health": with_health,
        }
