"""Settings of every Jupyter program in the notebook images (/etc/jupyter).

SQLite files stay in the container: on a home that is mounted over NFS they would wait for locks, and for the
storage. NB_SQLITE_DIR names another directory for them, such as `~/.local/share/jupyter`.
"""

import os
from pathlib import Path

c = get_config()  # noqa: F821 - given by traitlets

directory = Path(os.environ.get("NB_SQLITE_DIR") or "/tmp").expanduser()  # noqa: S108 - nobody else is in the container
directory.mkdir(parents=True, exist_ok=True)

# Signatures of trusted notebooks; outputs that are not trusted any more come back when their cells run.
c.NotebookNotary.db_file = str(directory / "nbsignatures.db")
# Of extensions that a site may add: jupyter-server-fileid, and the documents of jupyter-collaboration.
c.BaseFileIdManager.db_path = str(directory / "file_id_manager.db")
c.SQLiteYStore.db_path = str(directory / "jupyter_ystore.db")

# JupyterLab shows no trash: what lies there would count for the quota, and a full home could not take it.
c.FileContentsManager.delete_to_trash = False
# Without a trash, only empty directories could be deleted.
c.FileContentsManager.always_delete_dir = True

# A course's own choice of kernels (files/courses.py), by the names of their kernelspecs.
KERNELSPECS = {
    "python": "python3",
    "r": "ir",
    "octave": "octave",
    "bash": "bash",
    "javascript": "deno",
    "java": "java",
}
kernels = [name for name in os.environ.get("CAMPUS_KERNELS", "").split(",") if name]
if kernels:
    c.KernelSpecManager.allowed_kernelspecs = {KERNELSPECS.get(name, name) for name in kernels}
    # It is in every image, and would be offered whatever the list says.
    c.KernelSpecManager.ensure_native_kernel = "python" in kernels

# nbgrader's formgrader is a page in a frame of JupyterLab, which JupyterHub's own policy forbids.
if os.environ.get("CAMPUS_COURSE_ROLE") == "grader":
    c.ServerApp.tornado_settings = {"headers": {"Content-Security-Policy": "frame-ancestors 'self'"}}
