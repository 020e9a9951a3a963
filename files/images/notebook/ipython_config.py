"""Settings of IPython and its kernels in the notebook images (/etc/ipython)."""

c = get_config()  # noqa: F821 - given by traitlets

# SQLite on an NFS home waits for locks, and for the storage; the history lives as long as the server.
c.HistoryManager.hist_file = "/tmp/ipython-history.sqlite"  # noqa: S108 - nobody else is in the container
