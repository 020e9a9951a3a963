#!/usr/bin/python
# Copyright: Campus JupyterHub contributors
# SPDX-License-Identifier: BSD-3-Clause
"""Ask an image registry which of some images it holds, over one connection."""

from __future__ import annotations

DOCUMENTATION = r"""
module: registry_digests
short_description: Tells which images a registry holds, and their digests
description:
  - Asks for the manifest of each image, over one connection with a client certificate, and changes nothing.
  - One call of M(ansible.builtin.uri) for each image says the same and takes as many times as long.
options:
  address:
    description: The registry, as ADDRESS:PORT.
    type: str
    required: true
  images:
    description: What to ask for. Further keys are ignored.
    type: list
    elements: dict
    required: true
  namespace:
    description: What stands before the images' names in the registry.
    type: str
    required: true
  ca_file:
    description: Certificate of the authority that signed the registry's.
    type: path
    required: true
  client_cert:
    description: The certificate to show.
    type: path
    required: true
  client_key:
    description: Its private key.
    type: path
    required: true
  timeout:
    description: Seconds to wait for an answer.
    type: int
    default: 15
attributes:
  check_mode:
    support: full
    description: It only reads.
author:
  - Campus JupyterHub contributors
"""

EXAMPLES = r"""
- name: Ask for two images
  campus.jupyterhub.registry_digests:
    address: 198.51.100.11:5000
    namespace: campus
    images:
      - {name: hub, tag: 5a1f}
      - {name: proxy, tag: 77ce}
    ca_file: /etc/docker/certs.d/198.51.100.11:5000/ca.crt
    client_cert: /etc/docker/certs.d/198.51.100.11:5000/client.cert
    client_key: /etc/docker/certs.d/198.51.100.11:5000/client.key
"""

RETURN = r"""
digests:
  description: Digests of the images that are there, by name.
  type: dict
  returned: success
  sample: {hub: "sha256:0a1b"}
"""

import http.client  # noqa: E402 - documentation comes first in Ansible modules
import ssl  # noqa: E402
from typing import Any  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

# Docker's and OCI's manifests, of one image or of several platforms' images.
MANIFESTS = ", ".join((
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
))  # fmt: skip


def read_digests(
    connection: http.client.HTTPConnection, namespace: str, images: list[dict[str, Any]]
) -> dict[str, str]:
    """Ask for the manifest of each image (HEAD, distribution specification, "Checking if content exists").

    Args:
        connection: A connection to the registry.
        namespace: What stands before the images' names.
        images: Dictionaries with name and tag.

    Returns:
        Digests by name; images that are not there are left out.

    Raises:
        ValueError: The registry answered with something else than "here" and "not here".
    """
    digests = {}
    for image in images:
        path = f"/v2/{namespace}/{image['name']}/manifests/{image['tag']}"
        connection.request("HEAD", path, headers={"Accept": MANIFESTS})
        response = connection.getresponse()
        response.read()
        if response.status == http.client.OK:
            digests[image["name"]] = response.headers["Docker-Content-Digest"]
        elif response.status != http.client.NOT_FOUND:
            raise ValueError(f"{path}: {response.status} {response.reason}")
    return digests


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "address": {"type": "str", "required": True},
            "images": {"type": "list", "elements": "dict", "required": True},
            "namespace": {"type": "str", "required": True},
            "ca_file": {"type": "path", "required": True},
            "client_cert": {"type": "path", "required": True},
            "client_key": {"type": "path", "required": True},
            "timeout": {"type": "int", "default": 15},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        context = ssl.create_default_context(cafile=given["ca_file"])
        context.load_cert_chain(given["client_cert"], given["client_key"])
        connection = http.client.HTTPSConnection(given["address"], context=context, timeout=given["timeout"])
        digests = read_digests(connection, given["namespace"], given["images"])
    except (OSError, http.client.HTTPException, ValueError) as error:
        module.fail_json(msg=f"The registry at {given['address']} does not answer as it should: {error}")
    module.exit_json(changed=False, digests=digests)


if __name__ == "__main__":
    main()
