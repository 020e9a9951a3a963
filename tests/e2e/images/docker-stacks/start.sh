#!/bin/bash
# What docker-stacks images promise of their start script, as far as NB_USER, NB_UID, NB_GID, NB_GROUP and NB_UMASK go.
set -e

source /usr/local/bin/run-hooks.sh /usr/local/bin/start-notebook.d

if [ "$(id -u)" != 0 ]; then
  whoami >/dev/null 2>&1 || echo "WARNING: this user has no name"
  [ "$NB_UID" = "$(id -u)" ] || echo "WARNING: only root can change the user's number"
  [ "$NB_USER" = "$(id -un)" ] || echo "WARNING: only root can change the user's name"
  [ -w /home/jovyan ] || echo "WARNING: no write access to /home/jovyan"
  source /usr/local/bin/run-hooks.sh /usr/local/bin/before-notebook.d
  exec "$@"
fi

home=/home/$NB_USER
groupadd --force --non-unique --gid "$NB_GID" "${NB_GROUP:-$NB_USER}"
userdel jovyan
useradd --no-log-init --home-dir "$home" --shell /bin/bash --uid "$NB_UID" --gid "$NB_GID" --groups 100 "$NB_USER"
[ -e "$home" ] || cp -a /home/jovyan "$home"
case "${CHOWN_HOME:-}" in 1 | yes) chown "$NB_UID:$NB_GID" "$home" ;; esac
source /usr/local/bin/run-hooks.sh /usr/local/bin/before-notebook.d
umask "${NB_UMASK:-022}"
exec sudo --preserve-env --set-home --user "$NB_USER" PATH="$PATH" "$@"
