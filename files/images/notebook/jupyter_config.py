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
