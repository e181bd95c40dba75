"""The inner half of the sandbox: a script, started by `transforms.sandbox`, that runs programs one after the other.

It reads programs from standard input and writes an answer for each run. When standard input closes, whatever ended the
process on its other side, all that runs is killed.

With namespaces there are three processes: this one, which waits; its child, which is process 1 of a PID namespace of
its own, so that all that it starts ends with it; and the program. Without, this one starts the program itself.
"""

# It starts once for every program: json, typing, signal and pathlib would each take longer than all the rest to import.
# ruff: noqa: SIM105, PTH102, PTH103, PTH112, PTH114, PTH115, PTH116, PTH120, PTH123, PTH208, PTH211

from __future__ import annotations

import ctypes
import fcntl
import marshal
import os
import resource
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

NEW_IPC = 0x08000000
UNSHARED = 0x20000 | NEW_IPC | 0x04000000 | 0x10000000 | 0x20000000 | 0x40000000  # NEW: NS, IPC, UTS, USER, PID, NET
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 4, 36, 38
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE, MNT_DETACH = 1, 2, 4, 0x4000, 0x40000, 2
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE, OPEN_TREE_CLONE, MOVE_MOUNT_F_EMPTY_PATH = -100, 0x1000, 0x8000, 1, 4
# From 424 on all architectures have the same numbers.
OPEN_TREE, MOVE_MOUNT, MOUNT_SETATTR = 428, 429, 442
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
SIGINT, SIGKILL, SIG_DFL = 2, 9, None
NOBODY = 65534
SCRATCH = "/tmp"  # in the program's view: the one place it can write to
ERRORS = 4000  # bytes of standard error that are kept, the last ones
PIECE = 1 << 16
# The program is the module __main__, and nothing but it is: a name that it forgot to import stays unknown to it. exit
# and quit are the site module's, which is left out along with installed packages.
BOOT = """
def __boot__():
    import builtins, sys, _sitebuiltins
    builtins.exit, builtins.quit = (_sitebuiltins.Quitter(name, "end of file") for name in ("exit", "quit"))
    with open(3, encoding="utf-8", newline="") as program:
        source = program.read()
    sys.argv[:] = ["program.py"]
    del globals()["__boot__"]
    return compile(source, "program.py", "exec", dont_inherit=True)
exec(__boot__())
"""


class Unwanted(Exception):  # noqa: N818
    """The process that asked is gone."""


libc = ctypes.CDLL(None, use_errno=True)


def call(function: Any, *arguments: Any) -> int:
    """A call of the C library. Raises OSError, which names it."""
    given = [a.encode() if isinstance(a, str) else a for a in arguments]
    if (found := function(*given)) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{function.__name__} {arguments[:2]}: {os.strerror(error)}")
    return int(found)


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


# ---- namespaces


def enter_namespaces(job: dict[str, Any]) -> None:
    """Return in process 1 of new namespaces: no network, no other processes, of files only what Python is made of."""
    mapped = map_users(os.getpid())
    call(libc.unshare, UNSHARED)
    mapped()
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(1 if status else 0)
    call(libc.prctl, PR_SET_DUMPABLE, 0, 0, 0, 0)  # the program has no business in this process
    try:
        write("/proc/sys/user/max_user_namespaces", "0")  # whose owners have more of the kernel within reach
    except OSError:
        pass  # it is one wall more, and not there where /proc is read-only
    build_root(job["visible"], job["folder"])


def map_users(target: int) -> Callable[[], None]:
    """A function to be called after unshare, which maps users. Root is not held by RLIMIT_NPROC, so it needs another
    user for programs, and only a process outside may map two."""
    user, group = os.geteuid(), os.getegid()
    if user:
        return lambda: write_maps("self", f"{user} {user} 1", f"{group} {group} 1")
    ready, unshared = os.pipe()
    helper = os.fork()
    if helper == 0:
        try:
            os.close(unshared)
            both = f"0 0 1\n{NOBODY} {NOBODY} 1"
            if os.read(ready, 1):
                write_maps(str(target), both, both)
                os._exit(0)
        finally:
            os._exit(1)

    def mapped() -> None:
        os.write(unshared, b"x")
        if os.waitpid(helper, 0)[1]:
            raise PermissionError("users cannot be mapped")

    return mapped


def write_maps(process: str, users: str, groups: str) -> None:
    if process == "self":
        write("/proc/self/setgroups", "deny")  # else only the privileged may map groups
    write(f"/proc/{process}/uid_map", users)
    write(f"/proc/{process}/gid_map", groups)


def build_root(visible: list[str], base: str) -> None:
    """Make the root of the file system a read-only one that holds the `visible` folders and files of the real one. It
    is put together on `base`, some folder, which it covers in this namespace only."""
    call(libc.mount, None, "/", None, MS_REC | MS_PRIVATE, None)
    trees = {path: read_only(path) for path in visible if not os.path.islink(path)}
    mount_tmpfs(base, 1 << 20, "755")
    for path in visible:
        os.makedirs(os.path.dirname(base + path), exist_ok=True)
        if path not in trees:
            os.symlink(os.readlink(path), base + path)
            continue
        os.mkdir(base + path) if os.path.isdir(path) else os.close(os.open(base + path, os.O_CREAT))
        call(libc.syscall, MOVE_MOUNT, trees[path], "", AT_FDCWD, base + path, MOVE_MOUNT_F_EMPTY_PATH)
        os.close(trees[path])
    os.makedirs(base + SCRATCH, exist_ok=True)
    os.chdir(base)
    call(libc.syscall, PIVOT_ROOT[os.uname().machine], ".", ".")
    call(libc.umount2, ".", MNT_DETACH)
    os.chdir("/")
    set_attributes(AT_FDCWD, "/", 0, MS_RDONLY)
    mount_tmpfs(SCRATCH, 1 << 12, "1777")


def read_only(path: str) -> int:
    """A copy of the mounts at and below a path, attached nowhere yet; devices among them work."""
    tree = call(libc.syscall, OPEN_TREE, AT_FDCWD, path, OPEN_TREE_CLONE | AT_RECURSIVE | os.O_CLOEXEC)
    set_attributes(tree, "", AT_EMPTY_PATH | AT_RECURSIVE, MS_RDONLY | MS_NOSUID)
    return tree


def set_attributes(folder: int, path: str, flags: int, attributes: int) -> None:
    attr = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)  # to set, to clear, propagation, user namespace
    call(libc.syscall, MOUNT_SETATTR, folder, path, flags, attr, ctypes.sizeof(attr))


def mount_tmpfs(path: str, size: int, mode: str) -> None:
    call(libc.mount, "tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV, f"size={size},nr_inodes=4096,mode={mode}")


# ---- one run


def scratch(job: dict[str, Any]) -> str:
    """An empty folder for one run. What the run before wrote is gone, shared memory and message queues too."""
    if job["namespaces"]:
        call(libc.unshare, NEW_IPC)
        call(libc.umount2, SCRATCH, MNT_DETACH)
        mount_tmpfs(SCRATCH, job["file_bytes"], "1777")
        return SCRATCH
    folder = f"{job['folder']}/run"
    remove(folder)
    os.makedirs(folder)  # with the folder above, which goes with a process that is not wanted any more
    return folder


def remove(folder: str) -> None:
    import shutil  # which would take long to import where it is not needed

    shutil.rmtree(folder, ignore_errors=True)


def start(job: dict[str, Any], stdin: bytes, folder: str) -> tuple[int, int, int]:
    """Process and the read ends of its standard output and error."""
    program, given = in_memory(job["source"]), in_memory(stdin)
    (out, its_out), (err, its_err) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            above = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 4) for file in (given, its_out, its_err, program)]
            for at, file in enumerate(above):
                os.dup2(file, at)
            os.chdir(folder)
            confine(job)
            flags = ["-s", "-S", "-P", "-B", "-X", "utf8"]  # -I would also ignore the seed of hashes
            environment = {"PYTHONHASHSEED": "0", "HOME": folder, "TMPDIR": folder}
            os.execve(job["python"], [job["python"], *flags, "-c", BOOT], environment)
        except BaseException as error:
            os.write(2, f"the program cannot be started: {error}".encode())
        finally:
            os._exit(127)
    for file in (program, given, its_out, its_err):
        os.close(file)
    return child, out, err


def in_memory(content: bytes) -> int:
    """A file with this content, at its begin. Programs may seek in it, as in one that a shell redirects."""
    file = os.memfd_create("input")
    with open(file, "wb", closefd=False) as writer:
        writer.write(content)
    os.lseek(file, 0, os.SEEK_SET)
    return file


def confine(job: dict[str, Any]) -> None:
    """Limits, no way to privileges, and, where root runs the sandbox in namespaces, another user."""
    os.setpgid(0, 0)
    limits = {resource.RLIMIT_CPU: (job["cpu_seconds"], job["cpu_seconds"] + 1), resource.RLIMIT_CORE: (0, 0)}
    limits[resource.RLIMIT_FSIZE] = (job["file_bytes"],) * 2
    limits[resource.RLIMIT_NOFILE] = (job["open_files"],) * 2
    limits[resource.RLIMIT_NPROC] = (job["processes"] + others(job["namespaces"]),) * 2
    limits[resource.RLIMIT_AS] = (job["memory_bytes"],) * 2
    if job["namespaces"] and os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    call(libc.prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for kind, bounds in limits.items():
        resource.setrlimit(kind, bounds)


def others(namespaces: bool) -> int:
    """Processes and threads that count towards the program's limit and are not its own: those of its user, in its user
    namespace. There, that are the two of the sandbox, unless root gave it another user."""
    user = os.geteuid()
    if namespaces:
        return 2 if user else 0
    count = 0
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            count += len(os.listdir(f"/proc/{process}/task")) if os.stat(f"/proc/{process}").st_uid == user else 0
        except OSError:
            continue  # it ended meanwhile
    return count


def run(job: dict[str, Any], stdin: bytes, folder: str) -> bool:
    """Run the program once and answer. Returns whether it ended by itself and well."""
    child, out, err = start(job, stdin, folder)
    if not job["namespaces"]:
        answer(f"started {child}")  # whose group has to be killed should it kill this process
    said, most = {out: bytearray(), err: bytearray()}, job["output_bytes"]
    cut = watch(child, said, job["wall_seconds"], most)
    status, usage = end(child)
    for file in said:
        drain(file, said[file], most)
        os.close(file)
    if len(said[out]) > most:
        cut = "too much output"
    kept, errors = bytes(said[out][:most]), bytes(said[err][-ERRORS:])
    code, seconds = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
    answer(f"ended {code} {seconds} {len(kept)} {len(errors)} {cut}", kept, errors)
    return not cut and code == 0


def watch(child: int, said: dict[int, bytearray], seconds: float, most: int) -> str:
    """Read what the program says until it ends; why it has to be ended before, or an empty text."""
    ended, poll = os.pidfd_open(child), select.poll()
    for file in (0, ended, *said):
        poll.register(file, select.POLLIN)
    deadline = time.monotonic() + seconds
    try:
        while True:
            ready = [file for file, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)]
            if not ready:
                return "timed out"
            if 0 in ready:
                end(child)
                raise Unwanted
            for file in said.keys() & ready:
                if not read_some(file, said[file]):
                    poll.unregister(file)  # closed: the program may go on
            if any(len(heard) > most for heard in said.values()):
                return "too much output"
            if ended in ready:
                return ""
    finally:
        os.close(ended)


def read_some(file: int, heard: bytearray) -> int:
    piece = os.read(file, PIECE)
    heard += piece
    return len(piece)


def drain(file: int, heard: bytearray, most: int) -> None:
    """Read what is left in a pipe, whose other end a process that got away may hold."""
    os.set_blocking(file, False)
    try:
        while len(heard) <= most and read_some(file, heard):
            pass
    except BlockingIOError:
        pass


def end(child: int) -> tuple[int, resource.struct_rusage]:
    """Kill all that the program started and wait for it. Its status and what it used."""
    alone = os.getpid() == 1  # of a PID namespace, in which -1 means all but this process; elsewhere all of the user's
    for target in (-1,) if alone else (-child, child):
        kill(target)
    _, status, usage = os.wait4(child, 0)
    while True:  # what it left behind is a child of this process now
        for left in () if alone else children():
            kill(left)
        try:
            os.wait4(-1, 0)
        except ChildProcessError:
            return status, usage


def kill(process: int) -> None:
    try:
        os.kill(process, SIGKILL)
    except ProcessLookupError:
        pass


def children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(number) for number in file.read().split()]


def answer(line: str, *parts: bytes) -> None:
    """A line, and the parts of which it says the lengths."""
    whole = f"{line}\n".encode() + b"".join(parts)
    while whole:
        whole = whole[os.write(1, whole) :]


def received() -> dict[str, Any] | None:
    """What the process on the other side sent, which is trusted, or null: it will send no more."""
    with open(0, "rb", buffering=0, closefd=False) as file:
        size = file.read(8) or b""
        wanted, found = int.from_bytes(size, "big"), bytearray()
        while len(found) < wanted and (piece := file.read(wanted - len(found))):
            found += piece
    return dict(marshal.loads(found)) if size and len(found) == wanted else None


def main() -> None:
    libc.signal(SIGINT, SIG_DFL)  # Python's own handler would let programs interrupt process 1
    job = received()
    if job is None:
        sys.exit("no job")
    try:
        write("/proc/self/oom_score_adj", "1000")  # where memory is short, this goes first
        if job["namespaces"]:
            enter_namespaces(job)
        else:
            call(libc.prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except (OSError, KeyError) as error:
        sys.exit(str(error))
    answer("ready")
    try:
        while (program := received()) is not None:
            for stdin in program["inputs"]:
                if not run({**job, **program}, stdin, scratch(job)):
                    break
            answer("done")
    except Unwanted:
        if not job["namespaces"]:
            remove(job["folder"])


if __name__ == "__main__":
    main()
