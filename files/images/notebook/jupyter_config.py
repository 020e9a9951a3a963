"""Settings of every Jupyter program in the notebook images (/etc/jupyter).

SQLite files stay in the container: on a home that is mounted over NFS they would wait for locks, and for the
storage.
"""

c = get_config()  # noqa: F821 - given by traitlets

# Signatures of trusted notebooks; outputs that are not trusted any more come back when their cells run.
c.NotebookNotary.db_file = "/tmp/nbsignatures.db"  # noqa: S108 - nobody else is in the container
