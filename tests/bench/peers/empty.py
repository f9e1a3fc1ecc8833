"""`ray start --head` and an empty Serve application: what `fleet up` is measured against."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from fleet.cluster.ports import free_ports
from fleet.cluster.processes import kill, running

APP = """
import sys, urllib.request
import ray
from ray import serve

ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})

@serve.deployment
class Empty:
    async def __call__(self, request):
        return "accepted"

serve.run(Empty.bind())
assert urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[2]}/").read() == b"accepted"
"""


def start(folder: Path) -> float:
    """Start both, ask once, end all; return the seconds from the start to the answer."""
    folder.mkdir(parents=True)
    ports = free_ports(5)
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "AUTOSCALER_METRIC_PORT": str(ports[2]),
        "DASHBOARD_METRIC_PORT": str(ports[3]),
    }
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--temp-dir={folder}"]
    command += [f"--port={ports[0]}", "--node-ip-address=127.0.0.1", f"--dashboard-port={ports[4]}"]
    command += ["--dashboard-host=127.0.0.1", "--ray-client-server-port=0", "--disable-usage-stats"]
    began = time.perf_counter()
    with (folder / "ray.log").open("wb") as log:
        ray = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        tree: list[psutil.Process] = []
        try:
            _wait_for(ray, folder)
            # What runs now would be lost to us when its parent ends.
            app = [sys.executable, "-c", APP, f"127.0.0.1:{ports[0]}", str(ports[1])]
            subprocess.run(app, env=env, stdout=log, stderr=log, check=True, timeout=300)
            return time.perf_counter() - began
        finally:
            tree += psutil.Process(ray.pid).children(recursive=True)
            tree += [one for one in psutil.process_iter() if str(folder) in _line(one) and one.pid != os.getpid()]
            ray.terminate()
            try:
                ray.wait(20)
            except subprocess.TimeoutExpired:
                ray.kill()
                ray.wait()
            kill(process for process in tree if running(process))


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _wait_for(ray: subprocess.Popen[bytes], folder: Path) -> None:
    end = time.monotonic() + 120
    while b"Ray runtime started" not in (folder / "ray.log").read_bytes():
        if ray.poll() is not None or time.monotonic() > end:
            raise RuntimeError((folder / "ray.log").read_text()[-2000:])
        time.sleep(0.05)
