#!/bin/sh
# Installs the kernels that are named, and nothing of the others. The Dockerfile runs it; the image does not keep it. All users
# see the kernelspecs, for they lie in the environment and, R's, in /usr/share/jupyter.
set -eu

debian=
pypi=
for kernel; do
  case $kernel in
    python) ;; # in requirements.txt, for JupyterLab and nbgrader want it
    r) debian="$debian r-cran-irkernel" ;;
    # The last three draw where there is no display.
    octave) debian="$debian octave gnuplot-nox ghostscript fonts-freefont-otf" pypi="$pypi octave-kernel" ;;
    bash) pypi="$pypi bash-kernel" ;;
    javascript) pypi="$pypi deno" ;;
    java) debian="$debian default-jdk-headless" pypi="$pypi jjava" ;;
    *) echo "kernels.sh: there is no kernel $kernel." >&2 && exit 1 ;;
  esac
done

[ -n "$debian$pypi" ] || exit 0

if [ -n "$debian" ]; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -q
  # Java's package puts a link there and fails without the directory, which base left out with the manuals.
  mkdir -p /usr/share/man/man1
  # shellcheck disable=SC2086  # words
  apt-get install -y -q --no-install-recommends $debian
  apt-get clean
  # The index of fonts stays: without it, each home gets one at the first plot.
  rm -rf /var/lib/apt/lists/* /var/cache/apt /var/cache/debconf /var/log/* /tmp/*
  dpkg-query -W >/usr/share/campus/packages.txt
fi

# What is made in the environment gets the build group and setgid from the directories there, and g+w from the umask.
umask 002
if [ -n "$pypi" ]; then
  # shellcheck disable=SC2086
  /opt/venv/bin/pip --disable-pip-version-check install --root-user-action=ignore --constraint "${0%/*}/constraints.txt" $pypi
  /opt/venv/bin/pip freeze >/opt/venv/packages.txt
fi

# Bash's kernel and Deno register themselves, in the home of whoever asks.
HOME=$(mktemp -d)
export HOME
specs=$HOME/.local/share/jupyter/kernels
mkdir -p "$specs"
for kernel; do
  case $kernel in
    bash) /opt/venv/bin/python -m bash_kernel.install --user ;;
    javascript) /opt/venv/bin/deno jupyter --install ;;
    # The toolkit that needs no display is "discouraged" in ten lines at every first plot.
    octave) echo "warning('off', 'Octave:gnuplot-graphics');" >>/etc/octaverc ;;
    # install.packages() may write here, as pip may write into the environment.
    r) install -d -m 2775 -g nbbuild /usr/local/lib/R/site-library ;;
  esac
done
chmod -R g+rwX "$specs"
cp -r "$specs/." /opt/venv/share/jupyter/kernels/
rm -rf "$HOME"
