"""Filter of the role nfs: which paths are not as they should be."""

from __future__ import annotations


def nfs_paths_to_set(paths, root, found):
    """Choose the paths that are missing or have another owner, group or mode.

    Args:
        paths (list[dict]): ``name`` below the root; ``state``, ``owner``, ``group`` (numbers) and ``mode``
            (octal text) unless it is a directory of root's with mode 0755.
        root (str): directory of all of them.
        found (list[dict]): what the module ``find`` said of those that exist.

    Returns:
        list[dict]: ``path``, ``state``, ``uid``, ``gid`` and ``mode`` of each, in the order given.
    """
    known = {one["path"]: (one["uid"], one["gid"], int(one["mode"], 8)) for one in found}
    wanted = [
        {
            "path": f"{root}/{path['name']}".rstrip("/"),
            "state": path.get("state", "directory"),
            "uid": int(path.get("owner", 0)),
            "gid": int(path.get("group", 0)),
            "mode": path.get("mode", "0755"),
        }
        for path in paths
    ]
    return [one for one in wanted if known.get(one["path"]) != (one["uid"], one["gid"], int(one["mode"], 8))]


class FilterModule:
    """Ansible's entry point."""

    def filters(self):
        """Return the filters by name."""
        return {"nfs_paths_to_set": nfs_paths_to_set}
