"""Docker volumes that lie on an NFS server, named after what they mount."""

from __future__ import annotations

import hashlib
import json

from ansible.errors import AnsibleFilterError

DOCUMENTATION = """
name: volumes
short_description: Docker volumes on an NFS server
version_added: 1.0.0
description:
  - Builds the definitions of Docker volumes of type C(nfs4), as a compose file takes them.
  - Each name ends in a digest of all options. Docker never changes the options of a volume that exists; with
    a name for every set of options, a changed address gives a new volume, never silently the old one.
positional: _input, address
options:
  _input:
    description: >-
      The volumes, each with C(name), the first part of its name, and C(path), the export as the NFSv4 server
      shows it.
    type: list
    elements: dict
    required: true
  address:
    description: Name or address of the NFS server.
    type: str
    required: true
  options:
    description: Mount options besides the address.
    type: list
    elements: str
    default: []
"""

EXAMPLES = """
# {'exchange': {'name': 'exchange-9c1d0a77', 'driver': 'local',
#               'driver_opts': {'type': 'nfs4', 'device': ':/exchange', 'o': 'addr=192.0.2.11,hard'}}}
shared: "{{ exports | campus.jupyterhub.volumes('192.0.2.11', ['hard']) }}"
vars:
  exports: [{name: exchange, path: /exchange}]
"""

RETURN = """
_value:
  description: By the C(name) of the input, each volume with its full C(name), C(driver) and C(driver_opts).
  type: dict
"""


def volumes(wanted: list[dict], address: str, options: list[str] | None = None) -> dict[str, dict]:
    """Describe Docker volumes on an NFS server.

    Args:
        wanted: The volumes, each with ``name`` and ``path``.
        address: Name or address of the NFS server.
        options: Mount options besides the address.

    Returns:
        By name, each volume as a compose file takes it: ``name``, ``driver`` and ``driver_opts``.

    Raises:
        AnsibleFilterError: When the address is empty or would smuggle in an option, or a path is relative.
    """
    if not address or "," in address:
        raise AnsibleFilterError(f"volumes: {address!r} is no address of an NFS server")
    described = {}
    for volume in wanted:
        key, path = volume["name"], volume["path"]
        if not path.startswith("/"):
            raise AnsibleFilterError(f"volumes: the path of {key} must be absolute, not {path!r}")
        driver_opts = {
            "type": "nfs4",
            # The kernel wants a number here; Docker's local driver looks a name up before it mounts.
            "o": ",".join([f"addr={address}", *(options or [])]),
            "device": f":{path}",
        }
        digest = hashlib.sha256(json.dumps(driver_opts, sort_keys=True).encode()).hexdigest()
        described[key] = {"name": f"{key}-{digest[:8]}", "driver": "local", "driver_opts": driver_opts}
    return described


class FilterModule:
    """Filters of the collection for volumes."""

    def filters(self) -> dict:
        """Name the filters.

        Returns:
            The filters by name.
        """
        return {"volumes": volumes}
