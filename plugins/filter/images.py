"""Content-addressed names for the cluster's container images.

An image's tag is a digest of everything it is made from: the files of its build context, its build arguments
and its parent's tag. A tag that the registry already holds therefore never has to be built again, and another
base image renames every image that is built on it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

TAG_LENGTH = 20
IGNORED = {"__pycache__", ".git", ".DS_Store"}


def context_digest(context: Path, extra: list[Path]) -> str:
    """Digest the files that a build sees: names and contents, no times, owners or modes.

    Modes are left out because the role gives every file of a context the same one, whatever the checkout's
    umask was.

    Args:
        context: The directory with the Dockerfile.
        extra: Files that are copied to the top of the context.

    Returns:
        A hexadecimal SHA-256 digest.

    Raises:
        AnsibleFilterError: A file or the directory is missing.
    """
    if not (context / "Dockerfile").is_file():
        raise AnsibleFilterError(f"image context {context} has no Dockerfile")
    named = {
        path.relative_to(context).as_posix(): path
        for path in context.rglob("*")
        if path.is_file() and not IGNORED.intersection(path.relative_to(context).parts)
    }
    for path in extra:
        if not path.is_file():
            raise AnsibleFilterError(f"{path}, wanted in image context {context}, is not a file")
        named[path.name] = path
    digest = hashlib.sha256()
    for name in sorted(named):
        digest.update(f"{name}\0{hashlib.sha256(named[name].read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def in_build_order(images: dict[str, dict[str, Any]]) -> list[str]:
    """Order image names so that each follows its parent, and otherwise as listed.

    Args:
        images: Images by name; `parent` names another one.

    Returns:
        The names.

    Raises:
        AnsibleFilterError: A parent is unknown, or an image descends from itself.
    """
    ordered: list[str] = []

    def visit(name: str, descendants: tuple[str, ...]) -> None:
        if name in ordered:
            return
        if name in descendants:
            raise AnsibleFilterError(f"image {name} is its own ancestor: {' <- '.join((*descendants, name))}")
        parent = images[name].get("parent")
        if parent:
            if parent not in images:
                raise AnsibleFilterError(f"image {name}: no image is called as its parent {parent}")
            visit(parent, (*descendants, name))
        ordered.append(name)

    for name in images:
        visit(name, ())
    return ordered


def images_plan(
    images: list[dict[str, Any]],
    files_dir: str,
    repository: str,
    base_os: dict[str, str] | None = None,
    references: dict[str, str] | None = None,
    build_args: dict[str, str] | None = None,
    serial: str = "",
) -> list[dict[str, Any]]:
    """Say for each image what it will be called and what it is built from.

    Args:
        images: `images_list` and `images_extra`: name, perhaps context, files, args, parent, from, hosts.
        files_dir: The collection's `files` directory, in which contexts (`images/NAME`) and extra files lie.
        repository: What stands before the image's name, such as `198.51.100.11:5000/campus`.
        base_os: What the images without a parent start from, as far as it changes their content.
        references: Images made elsewhere, by name: they are pulled from there and not built.
        build_args: Arguments for every build.
        serial: Any text; another one gives every image another tag, so that all are built afresh.

    Returns:
        One dictionary per image in build order: name, tag, image (repository/name:tag), base (its parent's
        image, or empty), context, files, args, hosts, external.

    Raises:
        AnsibleFilterError: The list contradicts itself, or a file is missing.
    """
    by_name: dict[str, dict[str, Any]] = {}
    for image in images:
        if image["name"] in by_name:
            raise AnsibleFilterError(f"images_list and images_extra name {image['name']} twice")
        by_name[image["name"]] = image
    references = references or {}
    unknown = sorted(set(references) - set(by_name))
    if unknown:
        raise AnsibleFilterError(
            f"images_references names {', '.join(unknown)}, which are no images of the cluster"
        )

    root = Path(files_dir).resolve()
    plan: dict[str, dict[str, Any]] = {}
    for name in in_build_order(by_name):
        image = by_name[name]
        hosts = image.get("hosts", [])
        entry: dict[str, Any] = {"name": name, "hosts": [hosts] if isinstance(hosts, str) else list(hosts)}
        if name in references:
            reference = references[name]
            plan[name] = entry | {"image": reference, "tag": reference, "external": True}
            continue
        parent = plan.get(image.get("parent", ""))
        origin = image.get("from") or ""
        if origin and parent:
            raise AnsibleFilterError(f"image {name} has both a parent and a from")
        args = {key: str(value) for key, value in ((build_args or {}) | image.get("args", {})).items()}
        context = root / "images" / image.get("context", name)
        files = [root / file for file in image.get("files", [])]
        content = {
            "args": args,
            "context": context_digest(context, files),
            "parent": parent["tag"] if parent else origin or (base_os or {}),
            "serial": serial,
        }
        tag = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:TAG_LENGTH]
        plan[name] = entry | {
            "tag": tag,
            "image": f"{repository}/{name}:{tag}",
            "base": parent["image"] if parent else origin,
            "context": str(context),
            "files": [str(file) for file in files],
            "args": args,
            "external": False,
        }
    return list(plan.values())


def images_to_build(plan: list[dict[str, Any]], wanted: list[str]) -> list[dict[str, Any]]:
    """Add their ancestors to the wanted images: a parent has to be on the builder before its children.

    Args:
        plan: What `images_plan` returned.
        wanted: Names of images.

    Returns:
        The entries of the wanted images and of all they are built on, in build order, without images made
        elsewhere.
    """
    by_image = {entry["image"]: entry for entry in plan}
    names: set[str] = set()
    pending = [entry for entry in plan if entry["name"] in wanted]
    while pending:
        entry = pending.pop()
        names.add(entry["name"])
        if entry.get("base") in by_image:
            pending.append(by_image[entry["base"]])
    return [entry for entry in plan if entry["name"] in names and not entry["external"]]


def images_for_host(plan: list[dict[str, Any]], groups: list[str]) -> list[str]:
    """Name the images that a host runs.

    Args:
        plan: What `images_plan` returned.
        groups: The inventory groups that the host is in.

    Returns:
        Names of images.
    """
    return [entry["name"] for entry in plan if set(entry["hosts"]) & set(groups)]


def images_references(plan: list[dict[str, Any]], repository: str, digests: dict[str, str]) -> dict[str, str]:
    """Give each image the most exact reference that is known.

    Args:
        plan: What `images_plan` returned.
        repository: As given to `images_plan`.
        digests: Manifest digests by image name, as far as the registry told them.

    Returns:
        References by image name: repository/name@digest, or with the tag where no digest is known. An image
        made elsewhere keeps the reference that the site gave it.
    """
    return {
        entry["name"]: f"{repository}/{entry['name']}@{digests[entry['name']]}"
        if entry["name"] in digests and not entry["external"]
        else entry["image"]
        for entry in plan
    }


def images_to_remove(
    images: list[dict[str, Any]], containers: list[dict[str, Any]], repository: str, wanted: list[str]
) -> list[dict[str, str]]:
    """Choose the images of earlier runs among those of a node.

    Args:
        images: As the engine lists them (Docker API, `GET /images/json`).
        containers: As the engine lists them (Docker API, `GET /containers/json`), stopped ones too.
        repository: What stands before the images' names.
        wanted: References that are kept.

    Returns:
        `id` and `name` of each. An image that somebody gave another name as well is not among them.
    """
    used = {container["ImageID"] for container in containers}
    found = []
    for image in images:
        names = [*(image.get("RepoDigests") or []), *(image.get("RepoTags") or [])]
        names = [name for name in names if not name.startswith("<none>")]
        ours = [name for name in names if name.startswith(f"{repository}/")]
        if ours and ours == names and image["Id"] not in used and not set(ours) & set(wanted):
            found.append({"id": image["Id"], "name": ours[0]})
    return found


def registry_tags_to_remove(paths: list[str], kept: list[str]) -> list[str]:
    """Choose the tags of earlier runs among the directories of a registry.

    Args:
        paths: Directories below its repositories, which are laid out as
            `NAME/_manifests/tags/TAG` (distribution, registry/storage/paths.go).
        kept: Images that stay, as NAME:TAG.

    Returns:
        Directories of tags.
    """
    found = []
    for path in paths:
        parts = Path(path).parts
        if parts[-3:-1] == ("_manifests", "tags") and f"{parts[-4]}:{parts[-1]}" not in kept:
            found.append(path)
    return sorted(found)


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        """Name the filters.

        Returns:
            Functions by the name under which templates know them.
        """
        return {
            "images_for_host": images_for_host,
            "images_plan": images_plan,
            "images_references": images_references,
            "images_to_build": images_to_build,
            "images_to_remove": images_to_remove,
            "registry_tags_to_remove": registry_tags_to_remove,
        }
