"""Walls of the Linux kernel around the process that calls: what native code of an answer cannot climb either.

Landlock (docs.kernel.org/userspace-api/landlock.html) allows reading Python's own files and writing one folder. A
seccomp filter refuses the calls that Landlock does not know: processes, sockets, and changes of a file's owner, mode or
times. Root becomes the user nobody first.
"""

import ctypes
import os
import platform
import struct
import sys

NO_NEW_PRIVS, SECCOMP, KEEP_CAPS = 38, 22, 8
NOBODY = 65534
READ = 1 << 2 | 1 << 3
WRITE = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8
"""write and remove files, remove folders, make folders and files"""
RIGHTS = {1: 13, 2: 14, 3: 15}
"""version of Landlock -> how many rights on files it knows; later ones know 16"""
TRUNCATE = 1 << 14
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime", "/proc/net", "/dev/urandom")
FORBIDDEN = {
    # clone fork vfork execve execveat clone3 ptrace socket io_uring_setup, chmod, chown, times, extended attributes
    ("x86_64", 0xC000003E): (
        *(56, 57, 58, 59, 322, 435, 101, 41, 425, 90, 91, 268, 452, 92, 93, 94, 260),
        *(132, 235, 261, 280, 188, 189, 190, 197, 198, 199, 463, 466),
    ),
    ("aarch64", 0xC00000B7): (
        *(220, 221, 281, 435, 117, 198, 425, 52, 53, 452, 54, 55, 88, 5, 6, 7, 14, 15, 16, 463, 466),
    ),
}
"""machine and its number in a seccomp filter -> numbers of the calls that are refused"""
LIBC = ctypes.CDLL(None, use_errno=True)


def build(folder: str) -> list[str]:
    """Leave the process nothing but reading Python's files and writing ``folder``. Returns the walls that are missing.

    Raises PermissionError where it would stay root, or would have to read all files.
    """
    if not sys.platform.startswith("linux"):
        if os.geteuid() == 0:
            raise PermissionError("code is never run as root")
        return ["Landlock", "seccomp"]
    version = LIBC.syscall(444, None, ctypes.c_size_t(0), 1)
    if os.geteuid() == 0:
        become_nobody(version > 0)
    prctl(NO_NEW_PRIVS, 1)
    walls = {"Landlock": version > 0 and confine(folder, version), "seccomp": refuse_calls()}
    return [name for name, there in walls.items() if not there]


def become_nobody(confined: bool) -> None:
    """Become the user nobody, who may read files of root only where Landlock says which."""
    closed = not all(readable(path) for path in python_files())
    if closed and not confined:
        raise PermissionError("the user nobody cannot read Python's files")
    if closed:
        prctl(KEEP_CAPS, 1)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    if closed:  # CAP_DAC_READ_SEARCH and no other capability
        check(LIBC.capset(struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", 4, 4, 0, 0, 0, 0)))


def readable(path: str) -> bool:
    """Whether all users may enter the folder."""
    while path != os.path.dirname(path):
        if not os.stat(path).st_mode & 0o001:
            return False
        path = os.path.dirname(path)
    return True


def python_files() -> list[str]:
    paths = (sys.prefix, sys.base_prefix, sys.base_exec_prefix)  # no editable project: it may hold right answers
    return [os.path.realpath(path) for path in paths if os.path.isdir(path)]


def confine(folder: str, version: int) -> bool:
    """Apply Landlock. What is open already stays open."""
    known = (1 << RIGHTS.get(version, 16)) - 1
    rules = check(LIBC.syscall(444, struct.pack("=Q", known), ctypes.c_size_t(8), 0))
    for path in filter(os.path.exists, {*SYSTEM, *python_files()}):
        allow(rules, path, READ if os.path.isdir(path) else 1 << 2)
    allow(rules, os.devnull, (1 << 1 | 1 << 2 | TRUNCATE) & known)
    allow(rules, folder, (READ | WRITE | TRUNCATE) & known)
    check(LIBC.syscall(446, rules, 0))
    os.close(rules)
    return True


def allow(rules: int, path: str, rights: int) -> None:
    place = os.open(path, os.O_PATH)
    check(LIBC.syscall(445, rules, 1, struct.pack("=Qi", rights, place), 0))
    os.close(place)


def refuse_calls() -> bool:
    """Refuse the forbidden calls by EPERM; False on a machine whose numbers are not in the table."""
    machine = platform.uname().machine
    for (name, audit), calls in FORBIDDEN.items():
        if machine == name:
            # Another architecture's numbers (x32 and 32 bits) would be other calls: these are all refused.
            code = [(0x20, 0, 0, 4), (0x15, 0, len(calls) + 3, audit), (0x20, 0, 0, 0)]
            code += [(0x35, len(calls) + 1, 0, 1 << 30)]
            code += [(0x15, len(calls) - i, 0, number) for i, number in enumerate(calls)]
            code += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050001)]
            filters = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in code))
            prctl(SECCOMP, 2, struct.pack("@HP", len(code), ctypes.addressof(filters)))
            return True
    return False


def prctl(option: int, value: int, more: bytes | int = 0) -> None:
    pointer = more if isinstance(more, bytes) else ctypes.c_ulong(more)
    check(LIBC.prctl(option, ctypes.c_ulong(value), pointer, ctypes.c_ulong(0), ctypes.c_ulong(0)))


def check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
