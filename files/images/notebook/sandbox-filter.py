"""Writes the seccomp filter of campus-sandbox to standard output: what Landlock leaves open.

It is a program for the kernel, as seccomp(2) and setpriv(1) take it; run while the image is built.
"""

import errno
import socket
import sys

import seccomp

rules = seccomp.SyscallFilter(seccomp.ALLOW)


def refuse(call, *conditions, error=errno.EACCES):
    """Let a system call fail, if all conditions on its arguments hold.

    Args:
        call: its name.
        conditions: of seccomp.
        error: what it fails with; 0 makes the caller believe that it did not.
    """
    rules.add_rule(seccomp.ERRNO(error), call, *conditions)


# Nobody is called, and nobody may call: kernels talk over Unix sockets. ipykernel would listen at the
# loopback for the outputs of its children, and goes without. ZeroMQ knows systems without netlink.
refuse("connect")
refuse("socket", seccomp.Arg(0, seccomp.EQ, socket.AF_INET))
refuse("socket", seccomp.Arg(0, seccomp.EQ, socket.AF_INET6))
for family in range(socket.AF_INET6):
    if family not in (socket.AF_UNIX, socket.AF_INET):
        refuse("socket", seccomp.Arg(0, seccomp.EQ, family), error=errno.EINVAL)
refuse("socket", seccomp.Arg(0, seccomp.GT, socket.AF_INET6), error=errno.EINVAL)
refuse("io_uring_setup", error=errno.ENOSYS)

# What a process may do to others of its user without a signal: an end by a limit, or standing still.
refuse("prlimit64", seccomp.Arg(0, seccomp.NE, 0), seccomp.Arg(2, seccomp.NE, 0), error=errno.EPERM)
for call in ("sched_setaffinity", "sched_setattr"):
    refuse(call, seccomp.Arg(0, seccomp.NE, 0), error=errno.EPERM)
# ZeroMQ gives its threads, each by its number, the policy that all have (SCHED_OTHER is 0).
refuse("sched_setscheduler", seccomp.Arg(0, seccomp.NE, 0), seccomp.Arg(1, seccomp.NE, 0), error=errno.EPERM)
for call in ("setpriority", "ioprio_set"):
    refuse(call, seccomp.Arg(1, seccomp.NE, 0), error=errno.EPERM)

# Landlock does not look after modes, owners, times and attributes of the user's other files. A program that
# copies a file of its own sets them as well, and does not have to know that they stay as they are.
for call in (
    *("chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat"),
    *("utime", "utimes", "futimesat", "utimensat"),
):
    refuse(call, error=0)
for call in ("setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr"):
    refuse(call, error=errno.ENOTSUP)

rules.export_bpf(sys.stdout.buffer)
