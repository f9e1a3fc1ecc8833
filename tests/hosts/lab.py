"""Hosts of our own on one machine: network namespaces with an address, an sshd and a HOME each.

A scenario is a module run as root inside a sandbox of its own (`enter`): pid, mount, network and host name spaces that
end with it, so nothing of it can be left behind and nothing outside can be touched, `ray stop` included.

The hosts are `10.9.0.1`, `10.9.0.2`, … on one bridge; the scenario itself is at `10.9.0.254`, as a user's own
computer would be.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIED = ("fleet", "tests/hosts", "cluster.yaml", "pyproject.toml", "README.md", "LICENSE", "serve_app.py")
NETWORK = "10.9.0"
USER_ADDRESS = f"{NETWORK}.254"
NEEDED = ("unshare", "nsenter", "ip", "sshd", "ssh", "ssh-keygen", "rsync")


def missing() -> str:
    """Return why hosts cannot be made here, "" when they can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "making network namespaces needs root"
    absent = [tool for tool in NEEDED if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    probe = subprocess.run(["unshare", "-p", "-f", "-m", "-n", "-u", "--mount-proc", "true"], capture_output=True)
    return "" if probe.returncode == 0 else f"unshare is refused: {probe.stderr.decode().strip()}"


def enter(scenario: str, folder: Path, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run `python -m SCENARIO FOLDER` in a sandbox and return how it ended; everything in it ends with it.

    It runs on a copy of this checkout, so that all hosts have one revision while somebody edits.
    """
    source = folder / "source"
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    command = ["unshare", "-p", "-f", "-m", "-n", "-u", "--mount-proc", "--kill-child", sys.executable, "-m", scenario]
    env = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
        "LANG": "C.UTF-8",
        "HOME": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": str(source),
    }
    with (folder / "scenario.log").open("w") as log:
        process = subprocess.Popen([*command, str(folder)], env=env, stdout=log, stderr=subprocess.STDOUT, cwd=source)
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            code = process.wait()
    # Hosts share this machine's /tmp; what a scenario that was cut short left there is named by its homes.
    for number in range(1, 10):
        mark = hashlib.sha256(str(folder / f"node{number}" / ".fleet").encode()).hexdigest()[:10]
        for prefix in ("fleet", "fleetn"):
            shutil.rmtree(f"/tmp/{prefix}-{mark}", ignore_errors=True)
    return subprocess.CompletedProcess(command, code, (folder / "scenario.log").read_text(errors="replace"))


def wait_for(what: str, ready: Callable[[], object], timeout_s: float = 120.0) -> None:
    """Wait until `ready()` is true; fail with `what` when it is not in time."""
    end = time.monotonic() + timeout_s
    last: object = None
    while time.monotonic() < end:
        try:
            if last := ready():
                return
        except Exception as error:
            last = error
        time.sleep(0.5)
    raise AssertionError(f"after {timeout_s:.0f} s still not: {what} ({last!r})")


class Host:
    """One host.

    Attributes:
        address: its address.
        home: root's home on it.
        pid: its process 1, as the scenario sees it.
    """

    def __init__(self, lab: Lab, number: int) -> None:
        self.lab = lab
        self.number = number
        self.address = f"{NETWORK}.{number}"
        self.name = f"node{number}"
        self.home = lab.folder / self.name
        self.pid = 0

    def start(self) -> None:
        """Boot: name spaces, mounts of its own, sshd."""
        self.home.mkdir(exist_ok=True)
        (self.home / ".ssh").mkdir(mode=0o700, exist_ok=True)
        shutil.copy(self.lab.key.with_suffix(".pub"), self.home / ".ssh" / "authorized_keys")
        passwd = self.lab.folder / f"passwd{self.number}"
        passwd.write_text(f"root:x:0:0:root:{self.home}:/bin/bash\nsshd:x:105:65534::/run/sshd:/usr/sbin/nologin\n")
        sshd = self.lab.folder / f"sshd{self.number}.conf"
        sshd.write_text(
            f"ListenAddress {self.address}\nHostKey {self.lab.host_key}\nUsePAM no\nStrictModes no\nPidFile none\n"
            f"PermitRootLogin yes\nPasswordAuthentication no\nSetEnv PATH={os.environ['PATH']} LANG=C.UTF-8\n"
            "MaxStartups 100\nMaxSessions 100\n"
        )
        script = (
            f"hostname {self.name}; mkdir -p /tmp/ray; for d in /tmp/ray /run; do mount -t tmpfs tmpfs $d; done;"
            f" mount -t tmpfs -o size=2g tmpfs /dev/shm; mount --bind {passwd} /etc/passwd; mkdir -p /run/sshd;"
            # Names as on a network that knows its hosts: every look-up elsewhere would wait for a server in vain.
            f" mount --bind {self.lab.names} /etc/hosts; mount --bind /dev/null /etc/resolv.conf;"
            f" $(command -v sshd) -D -e -f {sshd} 2>{self.home}/sshd.log & echo $$ >/dev/null; wait"
        )
        before = ["ip", "netns", "exec", self.name, "unshare", "-p", "-f", "-m", "-u", "--mount-proc", "--kill-child"]
        self._outer = subprocess.Popen(
            [*before, "bash", "-c", f"trap : CHLD; {script}; while :; do wait; sleep 1; done"]
        )
        wait_for(f"{self.name} boots", lambda: self._find_pid())

    def _find_pid(self) -> bool:
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
        if not children:
            return False
        self.pid = int(children[0])
        return True

    def run(self, command: str, timeout_s: float = 60.0, check: bool = True) -> str:
        """Run a shell command on the host and return what it prints."""
        argv = [
            "nsenter",
            "-t",
            str(self.pid),
            "-m",
            "-n",
            "-p",
            "-u",
            "bash",
            "-c",
            f"export HOME={self.home}; {command}",
        ]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s)
        if check and done.returncode != 0:
            raise AssertionError(f"{self.name}: {command!r} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def processes(self) -> list[str]:
        """Return the command lines of what runs on the host beside its init, sshd and sleep."""
        listed = self.run("ps -eo args --no-headers").splitlines()
        own = ("bash -c trap", "sshd", "sleep 1", "ps -eo", "bash -c export HOME", "/usr/sbin/sshd")
        return [line for line in listed if line.strip() and not any(mark in line for mark in own)]

    def kill(self) -> None:
        """Lose power: everything on the host dies at once."""
        os.kill(self.pid, signal.SIGKILL)
        self._outer.wait(30)

    def cut(self) -> None:
        """Pull the network cable."""
        subprocess.run(["ip", "link", "set", f"v{self.number}", "down"], check=True)

    def mend(self) -> None:
        """Put the network cable back."""
        subprocess.run(["ip", "link", "set", f"v{self.number}", "up"], check=True)


class Lab:
    """The network and its hosts; made inside the sandbox.

    Args:
        folder: an empty folder for keys, homes and logs.
        hosts: how many.
    """

    def __init__(self, folder: Path, hosts: int) -> None:
        self.folder = folder
        self.key = folder / "key"
        self.host_key = folder / "host_key"
        for key in (self.key, self.host_key):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        self.names = folder / "hosts"
        everyone = "".join(f"{NETWORK}.{number} node{number}\n" for number in range(1, hosts + 1))
        self.names.write_text(f"127.0.0.1 localhost\n{everyone}")
        passwd = folder / "passwd"
        passwd.write_text(f"root:x:0:0:root:{folder}:/bin/bash\nsshd:x:105:65534::/run/sshd:/usr/sbin/nologin\n")
        for line in (
            "mount -t tmpfs tmpfs /run",
            "mkdir -p /run/netns /tmp/ray",
            f"mount --bind {passwd} /etc/passwd",
            f"mount --bind {self.names} /etc/hosts",
            "mount --bind /dev/null /etc/resolv.conf",
            "mount -t tmpfs tmpfs /tmp/ray",
            "mount -t tmpfs tmpfs /dev/shm",
            "ip link set lo up",
            "ip link add br0 type bridge",
            f"ip addr add {USER_ADDRESS}/24 dev br0",
            "ip link set br0 up",
        ):
            subprocess.run(line.split(), check=True)
        self.hosts = [self._connect(Host(self, number)) for number in range(1, hosts + 1)]

    def _connect(self, host: Host) -> Host:
        n, v = host.name, f"v{host.number}"
        for line in (
            f"ip netns add {n}",
            f"ip link add {v} type veth peer name eth0 netns {n}",
            f"ip link set {v} master br0 up",
            f"ip -n {n} addr add {host.address}/24 dev eth0",
            f"ip -n {n} link set eth0 up",
            f"ip -n {n} link set lo up",
            f"ip -n {n} route add default via {USER_ADDRESS}",
        ):
            subprocess.run(line.split(), check=True)
        host.start()
        return host

    def ssh(self, host: Host, command: str) -> list[str]:
        """Return the argv that runs a command on a host by ssh."""
        return [
            "ssh", "-i", str(self.key), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
            "-o", "LogLevel=ERROR", f"root@{host.address}", command,
        ]  # fmt: skip
