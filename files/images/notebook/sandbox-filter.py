"""Writes the seccomp filter of campus-sandbox to standard output: what Landlock leaves open.

It is a program for the kernel, as seccomp(2) and setpriv(1) take it; run while the image is built.
"""

import errno
import socket
import sys

import seccomp

FASTOPEN = 0x20000000  # a flag that connects while it sends (include/linux/socket.h)
TYPE_MASK = 0xF  # of a socket's type, below its flags (include/linux/net.h)

rules = seccomp.SyscallFilter(seccomp.ALLOW)


def refuse(call, *conditions, error=errno.EACCES):
    """Let a system call fail, if all conditions on its arguments hold.

    Args:
        call: its name.
        conditions: of seccomp.
        error: what it fails with; 0 makes the caller believe that it did not.
    """
    rules.add_rule(seccomp.ERRNO(error), call, *conditions)


# Nobody is called. Kernels talk over Unix sockets; ipykernel listens at the loopback, too, for its children.
refuse("connect")
# As on a system without netlink, which ZeroMQ is prepared for.
for family in range(socket.AF_INET6):
    if family not in (socket.AF_UNIX, socket.AF_INET):
        refuse("socket", seccomp.Arg(0, seccomp.EQ, family), error=errno.EINVAL)
refuse("socket", seccomp.Arg(0, seccomp.GT, socket.AF_INET6), error=errno.EINVAL)
for family in (socket.AF_INET, socket.AF_INET6):
    for kind in range(TYPE_MASK + 1):
        if kind != socket.SOCK_STREAM:
            refuse(
                "socket",
                seccomp.Arg(0, seccomp.EQ, family),
                seccomp.Arg(1, seccomp.MASKED_EQ, TYPE_MASK, kind),
            )
for call, flags in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)):
    refuse(call, seccomp.Arg(flags, seccomp.MASKED_EQ, FASTOPEN, FASTOPEN))
refuse("io_uring_setup", error=errno.ENOSYS)

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
