#!/bin/sh
# Entry point of the notebook images. Two ways in, one way on:
#
# - as the user (identity "direct"): the container runs as UID:GID with nbbuild among its groups;
# - as root (identity "root"): NB_USER, NB_UID and NB_GID say who it is for. Root only becomes that user, for good, and
#   starts this script again. Nothing is created, copied or chowned as root.
#
# As the user: name the account, set the umask, go home, run the command.
#
#   NB_USER    account name (default: jovyan)
#   NB_UID     identity root only: the user's UID
#   NB_GID     identity root only: the user's primary group
#   NB_GROUP   name of the primary group (default: the account's name)
#   NB_GROUPS  names of further groups, "students:20001 course-a:20007"; identity root also joins them
#   NB_UMASK   default 007: what is shared is shared by setgid folders, and with nobody else
#   NB_MAIL_DOMAIN  default localhost: EMAIL, if nobody set it, is NB_USER@NB_MAIL_DOMAIN; git commits under it until
#              the user says otherwise (git-config(1), user.email)
#   CAMPUS_COURSE  the course whose directories are mounted below /srv/courses; ~/courses becomes a link to them
#   HOME       default /home/NB_USER
#   NBBUILD_GID  the image's own: GID of the group that may write its environment
set -eu

nbbuild_gid=${NBBUILD_GID:-990}
extrausers=/var/lib/extrausers

fail() {
  echo "start.sh: $*" >&2
  exit 78 # EX_CONFIG
}

is_number() {
  case $1 in '' | *[!0-9]*) return 1 ;; esac
}

NB_USER=${NB_USER:-jovyan}
NB_GROUP=${NB_GROUP:-$NB_USER}
NB_GROUPS=$(echo "${NB_GROUPS:-}" | tr ',' ' ')
for name in "$NB_USER" "$NB_GROUP"; do
  case $name in -* | *[!A-Za-z0-9._-]*) fail "'$name' cannot be an account or group name." ;; esac
done
for group in $NB_GROUPS; do
  case ${group%:*} in '' | -* | *[!A-Za-z0-9._-]*) fail "NB_GROUPS: '$group' is not NAME:GID." ;; esac
  is_number "${group##*:}" || fail "NB_GROUPS: '$group' is not NAME:GID."
done

become_user() {
  is_number "${NB_UID:-}" && [ "$NB_UID" -gt 0 ] || fail "started as root without NB_UID (a number above 0)."
  is_number "${NB_GID:-}" && [ "$NB_GID" -gt 0 ] || fail "started as root without NB_GID (a number above 0)."
  groups=$nbbuild_gid
  for group in $(id -G) $NB_GROUPS; do
    gid=${group##*:}
    # Docker's --group-add is kept; group 0 never, since with AUTH_SYS it would reach the storage too.
    [ "$gid" -eq 0 ] || groups=$groups,$gid
  done
  case ${HOME:-/root} in / | /root) HOME=/home/$NB_USER ;; esac
  export HOME
  # Taking capabilities out of the bounding set needs SETPCAP (bit 8), which a service may have dropped already;
  # no_new_privs keeps them out of reach in any case.
  effective=$(sed -n 's/^CapEff:[[:space:]]*//p' /proc/self/status)
  bounding=
  [ $((0x$effective >> 8 & 1)) -eq 0 ] || bounding=--bounding-set=-all
  cd /
  # shellcheck disable=SC2086  # an empty word is no option
  exec setpriv --reuid "$NB_UID" --regid "$NB_GID" --groups "$groups" --inh-caps=-all $bounding --no-new-privs -- \
    "$0" "$@"
}

# A line per account and group that has no name yet. A read-only root file system without a tmpfs there is no reason to
# stop: programs then see the number only.
name_account() {
  [ -w "$extrausers" ] || [ -w "$extrausers/passwd" ] || return 0
  for group in "$NB_GROUP:$(id -g)" $NB_GROUPS; do
    getent group "${group##*:}" >/dev/null || echo "${group%:*}:x:${group##*:}:" >>"$extrausers/group"
  done
  getent passwd "$(id -u)" >/dev/null ||
    echo "$NB_USER:x:$(id -u):$(id -g):$NB_USER:$HOME:/bin/bash" >>"$extrausers/passwd"
}

# A link rather than a mount in the home: Docker would make the mount's directory there as root, whom the storage does not know.
# What the user has under that name stays.
link_courses() {
  if [ -n "${CAMPUS_COURSE:-}" ]; then
    [ -e "$HOME/courses" ] || ln -sfn /srv/courses "$HOME/courses" || echo "start.sh: no link ~/courses" >&2
  elif [ "$(readlink "$HOME/courses" 2>/dev/null)" = /srv/courses ]; then
    rm -f "$HOME/courses"
  fi
}

# Whether a directory takes something more. NFS tells of a full disk or quota at the end of a write only.
takes_more() {
  probe=$(mktemp "$1/.start.XXXXXX" 2>/dev/null) || return 1
  taken=0
  dd if=/dev/zero of="$probe" bs=64k count=1 conv=fsync 2>/dev/null || taken=1
  rm -f "$probe" || :
  return $taken
}

# Jupyter starts in no home that takes nothing more, and without a server nobody deletes anything there. For this time it has its
# settings and data in the container; or in memory, where the quota counts the container, too: on the main node, if Docker keeps
# it on the file system of the homes.
make_do_without_space() {
  ! takes_more "$HOME" || return 0
  echo "start.sh: nothing can be written to $HOME; settings are not kept this time." >&2
  space=/tmp
  if ! takes_more /tmp; then
    space=/dev/shm
    export TMPDIR=$space JUPYTER_RUNTIME_DIR=$space/jupyter-runtime DENO_DIR=$space/deno NB_SQLITE_DIR="${NB_SQLITE_DIR:-$space}"
  fi
  export JUPYTER_CONFIG_DIR=$space/full/config JUPYTER_DATA_DIR=$space/full/data IPYTHONDIR=$space/full/ipython XDG_CACHE_HOME=$space/full/cache
  mkdir -p "$JUPYTER_CONFIG_DIR" "$JUPYTER_DATA_DIR" "$IPYTHONDIR" "$XDG_CACHE_HOME" || :
}

[ "$(id -u)" -ne 0 ] || become_user "$@"

umask "${NB_UMASK:-007}"
case ${HOME:-/} in
  / | /root)
    # Nobody said where home is (a try-out without storage): anything will do that can be written.
    HOME=/home/$NB_USER
    [ -w "$HOME" ] || { HOME=/tmp/home && mkdir -p -m 0700 "$HOME"; }
    ;;
esac
# Never anywhere else than where the site said: what is saved in a container is lost with it.
cd "$HOME" 2>/dev/null || fail "the home directory $HOME cannot be entered by $(id -u):$(id -g)."
name_account
link_courses
make_do_without_space
export HOME USER="$NB_USER" LOGNAME="$NB_USER" SHELL=/bin/bash EMAIL="${EMAIL:-$NB_USER@${NB_MAIL_DOMAIN:-localhost}}"
# What follows may be another image's start script, which compares these with the truth.
NB_UID=$(id -u) NB_GID=$(id -g)
export NB_UID NB_GID
unset NB_GROUP NB_GROUPS
exec "$@"
