"""Owns a Claude Code process tree, so that nothing of it survives its agent. Stdlib only: `python -I -S guard.py`.

    agent → stub → guard → claude → tools

The *stub* stays in the agent's process group, dies with the agent (SIGKILL), hands signals on and ends with claude's
exit code. The *guard*, in a session of its own, is told when the stub dies (SIGTERM). One process is not enough: Ray
kills the worker's direct children with SIGKILL, and their children live on. Both are child subreapers: whatever
detaches itself from claude becomes a child of the guard, or of the stub when the guard itself was killed, and is found.

Usage: guard.py [--grace S] [--tag NAME=VALUE] [--cgroup NAME] [--alive DESCRIPTOR --lease S] -- command…
"""

# ruff: noqa: PTH102, PTH106, PTH110, PTH123, PTH208
# pathlib would double the time it takes to start.
from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import sys
import time
from collections.abc import Iterable

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
POLL_S = 0.5
"""How often a parent's death is looked for, where the kernel does not tell (macOS), and in case a signal was lost."""
ORPHAN_GRACE_S = 1.0
"""How long claude has to end by itself when its agent is gone: all must be over within 3 s."""
LINUX = sys.platform.startswith("linux")


class Options:
    """What the agent asks for."""

    grace = 2.0
    tag = ""
    cgroup = ""
    """The name of the cgroup; once it is made, its path."""
    alive = 0
    """A descriptor that the agent writes to while it is in contact with its fleet."""
    lease = 0.0
    """How many seconds without a sign from there end claude: also a frozen agent must not go on for ever."""


def prctl(option: int, value: int) -> None:
    """Call prctl(2); silently nothing where there is none."""
    if not LINUX:
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


class Signals:
    """Signals as data: `wait` returns those that came, or nothing after a time."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        for end in (self.reading, self.writing):
            os.set_blocking(end, False)
            os.set_inheritable(end, False)
        for number in (*FORWARDED, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self.writing, warn_on_full_buffer=False)
        # Ray blocks SIGINT in its workers, and a mask is inherited.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def wait(self, seconds: float, alive: int = 0) -> set[int]:
        """Return the set of signal numbers that came within this time; return at once when `alive` can be read."""
        with contextlib.suppress(OSError, InterruptedError):
            ready, _, _ = select.select([self.reading, alive] if alive else [self.reading], [], [], seconds)
            if self.reading in ready:
                return {signal.Signals(number) for number in os.read(self.reading, 512)}
        return set()

    def reset(self) -> None:
        """Give a child the signals' usual meaning again."""
        signal.set_wakeup_fd(-1)
        for number in (*FORWARDED, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)


def parents() -> dict[int, int]:
    """Return pid → parent's pid of every process."""
    found: dict[int, int] = {}
    if LINUX:
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    with open(f"/proc/{name}/stat", "rb") as file:
                        fields = file.read().rpartition(b")")[2].split()
                    if fields[0] != b"Z":
                        found[int(name)] = int(fields[1])
        return found
    import subprocess

    with contextlib.suppress(OSError):
        listing = subprocess.run(["/bin/ps", "-axo", "pid=,ppid="], capture_output=True, check=False).stdout
        for line in listing.splitlines():
            pid, parent = line.split()
            found[int(pid)] = int(parent)
    return found


def descendants(root: int) -> list[int]:
    """Return the pids below a process."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    todo = [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def tagged(tag: str) -> list[int]:
    """Return the pids whose environment holds the entry `NAME=VALUE`; Linux only."""
    found: list[int] = []
    if not LINUX or not tag:
        return found
    wanted = tag.encode()
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
                if wanted in file.read().split(b"\0"):
                    found.append(int(name))
    return found


def kill(pids: Iterable[int]) -> None:
    """SIGKILL processes; those that are gone already do not matter."""
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def reap() -> dict[int, int] | None:
    """Take the exit codes of all ended children: pid → code (128 + signal); None when no child is left at all."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended or None
        if pid == 0:
            return ended
        ended[pid] = code_of(status)


def code_of(status: int) -> int:
    """Return a wait status as a shell's exit code."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def clear(options: Options, known: Iterable[int] = (), look_for_tag: bool = True) -> None:
    """Kill all descendants until there is none, and on Linux whatever carries the tag (but the stub itself).

    Both kinds of search read all of /proc, which takes milliseconds of every run: a subreaper without a child has no
    descendant, and the tag is looked for once, by whoever goes last.
    """
    spare = {os.getpid(), os.getppid()}
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        cgroup_kill(options)
        kill(known)
        while left := reap():
            pass
        if not LINUX or left is not None:
            kill(descendants(os.getpid()))
        others = [pid for pid in tagged(options.tag) if pid not in spare] if look_for_tag else []
        kill(others)
        if left is None and (LINUX or not (known or descendants(os.getpid()))):
            break
        known = ()
        time.sleep(0.01)
    cgroup_remove(options)


def cgroup_path(name: str) -> str:
    """Return the path of a cgroup (v2) of this name below our own."""
    with open("/proc/self/cgroup") as file:
        own = next(line[3:].strip() for line in file if line.startswith("0::"))
    for mount in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        if os.path.exists(f"{mount}/cgroup.procs"):
            return f"{mount}{own.rstrip('/')}/{name}"
    raise OSError("no cgroup v2 here")


def cgroup_make(options: Options) -> None:
    """Make the cgroup, where that is possible; `options.cgroup` becomes its path, or None."""
    name, options.cgroup = options.cgroup, ""
    if name and LINUX:
        with contextlib.suppress(OSError, StopIteration):
            path = cgroup_path(name)
            os.mkdir(path)
            options.cgroup = path


def cgroup_write(options: Options, file: str, text: str) -> None:
    """Write into a file of the cgroup, where there is one."""
    if options.cgroup:
        with contextlib.suppress(OSError), open(f"{options.cgroup}/{file}", "w") as out:
            out.write(text)


def cgroup_kill(options: Options) -> None:
    """Kill everything in the cgroup with one write (Linux 5.14)."""
    cgroup_write(options, "cgroup.kill", "1")


def cgroup_remove(options: Options) -> None:
    """Remove the cgroup; it fails harmlessly while a zombie is in it."""
    if options.cgroup:
        for _ in range(20):
            try:
                os.rmdir(options.cgroup)
                return
            except OSError as error:
                # Usually it is gone: the guard has removed it, or it could not be made at all.
                if error.errno != errno.EBUSY:
                    return
            time.sleep(0.01)


def forget_files() -> None:
    """Let go of the agent's pipes and the credentials' descriptor: only claude may hold them."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)


def close_others(signals: Signals, alive: int = 0) -> None:
    """Close every descriptor above stderr but our own."""
    keep = {signals.reading, signals.writing, alive}
    top = 1024
    with contextlib.suppress(OSError, ValueError):
        top = max(int(name) for name in os.listdir("/dev/fd")) + 1
    for descriptor in range(3, min(top, 65536)):
        if descriptor not in keep:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def start_claude(command: list[str], options: Options) -> int:
    """Fork and execute the command; return its pid."""
    me = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        for number in (*FORWARDED, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        cgroup_write(options, "cgroup.procs", "0")
        # When the guard itself is killed, claude ends what it has started.
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != me:
            os._exit(143)
        os.execvp(command[0], command)
    except OSError as error:
        print(f"guard: cannot execute {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
    finally:
        os._exit(127)


def guard(command: list[str], options: Options, stub: int) -> int:
    """The guard's life: claude, then the end of everything below. Returns the exit code."""
    signals = Signals()
    os.setsid()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != stub:
        return 143
    cgroup_make(options)
    alive = options.alive
    if alive:
        os.set_inheritable(alive, False)
        os.set_blocking(alive, False)
    claude = start_claude(command, options)
    forget_files()
    close_others(signals, alive)
    heard_at = time.monotonic()
    code: int | None = None
    kill_at: float | None = None
    seen: set[int] = set()
    while code is None:
        patience = POLL_S if kill_at is None else max(0.0, min(POLL_S, kill_at - time.monotonic()))
        came = signals.wait(patience, alive)
        if alive:
            with contextlib.suppress(BlockingIOError):
                if os.read(alive, 4096):
                    heard_at = time.monotonic()
                else:
                    # The agent has let go of it, or is gone, which the kernel tells by itself.
                    os.close(alive)
                    alive = 0
        expired = alive and time.monotonic() - heard_at > options.lease
        orphaned = expired or os.getppid() != stub
        if (orphaned or came & {signal.SIGTERM, signal.SIGHUP}) and kill_at is None:
            with contextlib.suppress(OSError):
                os.kill(claude, signal.SIGTERM)
                os.kill(claude, signal.SIGCONT)
            kill_at = time.monotonic() + (ORPHAN_GRACE_S if orphaned else options.grace)
        elif orphaned and kill_at is not None:
            kill_at = min(kill_at, time.monotonic() + ORPHAN_GRACE_S)
        if signal.SIGINT in came:
            with contextlib.suppress(OSError):
                os.kill(claude, signal.SIGINT)
        if kill_at is not None and time.monotonic() >= kill_at:
            kill([claude])
        if not LINUX:
            seen |= set(descendants(os.getpid()))
        code = (reap() or {}).get(claude)
    # The stub looks for the tag, after us.
    clear(options, seen, look_for_tag=False)
    return code


def main(arguments: list[str]) -> int:
    """The stub's life: start the guard, hand signals on, end with its exit code."""
    options = Options()
    while arguments and arguments[0] != "--":
        name, value = arguments[0][2:], arguments[1]
        setattr(options, name, type(getattr(options, name))(value))
        arguments = arguments[2:]
    command = arguments[1:]
    agent = os.getppid()
    signals = Signals()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if agent == 1 and LINUX:
        return 143
    me = os.getpid()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signals.reset()
            code = guard(command, options, me)
        finally:
            os._exit(code)
    forget_files()
    close_others(signals)
    while True:
        for number in signals.wait(POLL_S):
            if number in FORWARDED:
                with contextlib.suppress(OSError):
                    os.kill(child, number)
        if os.getppid() != agent:
            # Only where the kernel does not kill us with the agent.
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGTERM)
            return 143
        ended = (reap() or {}).get(child)
        if ended is None:
            continue
        # Also after a guard that was killed: what it had below it is below us now, or carries the tag.
        if options.cgroup:
            with contextlib.suppress(OSError, StopIteration):
                options.cgroup = cgroup_path(options.cgroup)
        clear(options)
        return ended


if __name__ == "__main__":
    # Not `sys.exit`: an interpreter that is taken down in order takes milliseconds that the run's end waits for.
    exit_code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(exit_code)
