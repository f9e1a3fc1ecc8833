"""Scenario: `ray up cluster.yaml` on three hosts, work on each, a Ray job, `ray down`; run by `lab.enter`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import yaml

from fleet import Fleet
from fleet.models import AgentInfo
from tests.hosts.lab import Lab, wait_for

ROOT = Path(__file__).parents[2]
ROLE = "api_developer"

DRIVER = """
from fleet import Fleet
with Fleet.connect() as fleet:
    handles = fleet.map(["run: echo from a job"], role="api_developer")
    for handle in handles:
        handle.wait(timeout=120)
        print("JOB RESULT", handle.result.text)
"""


def cluster_file(lab: Lab) -> Path:
    """Fill in the names of our `cluster.yaml`; only the install step differs: the hosts have no package index."""
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    head, *workers = lab.hosts
    config["provider"] |= {"head_ip": head.address, "worker_ips": [host.address for host in workers]}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(lab.key)}
    config["file_mounts"] = {"~/fleet-source": str(ROOT), "~/.ray/auth_token": str(lab.folder / ".ray" / "auth_token")}
    site = sysconfig.get_paths()["purelib"]
    packages = f"~/fleet-venv/lib/python3.{sys.version_info[1]}/site-packages"
    first = "#!$HOME/fleet-venv/bin/python\\nfrom"
    installed = {
        "fleet": f"{first} fleet.cli import main\\nmain()",
        "ray": f"{first} ray.scripts.scripts import main\\nmain()",
    }
    config["setup_commands"] = [
        f"test -x ~/fleet-venv/bin/python || {sys.executable} -m venv --without-pip ~/fleet-venv",
        f'printf "$HOME/fleet-source\\n{site}\\n" > {packages}/all.pth',
        *(
            f'printf "{text}" > ~/fleet-venv/bin/{name} && chmod +x ~/fleet-venv/bin/{name}'
            for name, text in installed.items()
        ),
        *(command for command in config["setup_commands"] if "venv -" not in command and "pip install" not in command),
    ]
    up = config["head_start_ray_commands"][-1]
    config["head_start_ray_commands"][-1] = f"FLEET_REHEARSAL=1 {up}"
    file = lab.folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def shell(command: str, timeout_s: float = 240.0, check: bool = True) -> str:
    """Run a command of the user's own computer and return what it prints."""
    print("$", command, flush=True)
    begin = time.monotonic()
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=timeout_s, check=False)
    print(f"  exit {done.returncode} after {time.monotonic() - begin:.1f} s", flush=True)
    if check and done.returncode != 0:
        raise AssertionError(f"{command}: {done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


def main(folder: Path) -> None:
    """The scenario."""
    lab = Lab(folder, 3)
    for host in lab.hosts:
        wait_for(f"ssh to {host.name}", lambda: subprocess.run(lab.ssh(host, "true"), check=True).returncode == 0)  # noqa: B023
    shell(f"fleet cluster check --fix {cluster_file(lab)}")
    file = cluster_file(lab)
    os.environ["RAY_AUTH_MODE"] = "token"
    shell(f"ray up -y --disable-usage-stats {file} > {folder}/ray_up.log 2>&1 || (tail -50 {folder}/ray_up.log; false)")
    connection = subprocess.Popen(
        ["fleet", "cluster", "connect", str(file), "--json"], stdout=subprocess.PIPE, text=True, cwd=folder
    )
    try:
        work(lab, connection)
    finally:
        connection.terminate()
        connection.wait(30)
    shell(f"ray down -y {file} > {folder}/ray_down.log 2>&1 || (tail -50 {folder}/ray_down.log; false)")
    begin = time.monotonic()
    for host in lab.hosts:
        wait_for(f"nothing left on {host.name}", lambda: not _left(host), 45)  # noqa: B023
    print(f"nothing left on any host {time.monotonic() - begin:.1f} s after `ray down`")
    print("SCENARIO OK")


def _left(host: object) -> list[str]:
    left = host.processes()  # type: ignore[attr-defined]
    if left:
        print("left:", [line[:100] for line in left], flush=True)
    return left


def work(lab: Lab, connection: subprocess.Popen[str]) -> None:
    """Use the cluster from the user's own computer."""
    assert connection.stdout is not None
    text = ""
    while "}" not in text:
        line = connection.stdout.readline()
        assert line, "the connection ended"
        text += line
    where = json.loads(text)
    os.environ |= {"FLEET_URL": where["url"], "FLEET_TOKEN": where["token"]}
    with Fleet.connect(where["url"], where["token"]) as fleet:
        wait_for("three nodes", lambda: len(fleet.nodes()) == 3, 180)
        shell("fleet scale api_developer 3")
        wait_for("an agent on each node", lambda: len({agent.node for agent in _ready(fleet)}) == 3, 180)
        handles = [fleet.submit(ROLE, "run: hostname", agent=agent.id) for agent in _ready(fleet)]
        wait_for("a task done on each node", lambda: all(one.refresh().state.final for one in handles), 180)
        tasks = [one.refresh() for one in handles]
        assert all(task.state == "succeeded" for task in tasks), tasks
        seen = {name for one in handles for name in re.findall(r"node\d", one.result.text)}
        assert seen == {"node1", "node2", "node3"}, seen
    driver = lab.folder / "driver"
    driver.mkdir()
    (driver / "driver.py").write_text(DRIVER)
    head = lab.hosts[0]
    python = f"{head.home}/fleet-venv/bin/python"
    said = shell(f"ray job submit --address {where['dashboard_url']} --working-dir {driver} -- {python} driver.py")
    assert "JOB RESULT" in said and "from a job" in said, said
    shutil.rmtree(driver)


def _ready(fleet: Fleet) -> list[AgentInfo]:
    return [agent for agent in fleet.agents(role=ROLE) if agent.state in ("idle", "busy")]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
