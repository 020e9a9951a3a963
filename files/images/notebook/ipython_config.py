"""Settings of IPython and its kernels in the notebook images (/etc/ipython)."""

import os
from pathlib import Path

c = get_config()  # noqa: F821 - given by traitlets

# As in jupyter_config.py: SQLite on an NFS home waits for locks, and for the storage. The history lives as
# long as the server.
directory = Path(os.environ.get("NB_SQLITE_DIR") or "/tmp").expanduser()  # noqa: S108 - nobody else is in the container
directory.mkdir(parents=True, exist_ok=True)
c.HistoryManager.hist_file = str(directory / "ipython-history.sqlite")
