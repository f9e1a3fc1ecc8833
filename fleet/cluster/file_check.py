"""Says what is wrong with a `cluster.yaml` before any machine is touched. Pure but for looking at local files.

It knows Ray's own schema (of the installed release) and what a fleet needs beside it: one revision on every node, our
start commands in place of bare `ray start`, a token, ports that do not collide, keys that exist.
"""

from __future__ import annotations

import ipaddress
import json
import re
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonschema import Draft7Validator

TOKEN_FILE = "~/.ray/auth_token"
PLACEHOLDERS = re.compile(r"\b(my-project|my-group|ami-my-image|192\.0\.2\.\d+)\b")
"""What our own file leaves for the user to fill in (192.0.2.0/24 is reserved for documentation, RFC 5737)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        level: an `error` stops the launch or loses the fleet, a `warning` does not.
        where: the key.
        message: what was expected, what came, what to do.
    """

    level: Literal["error", "warning"]
    where: str
    message: str


def check_file(path: Path) -> list[Finding]:
    """Return what is wrong with a cluster file, worst first; empty when nothing is.

    Raises:
        OSError: when the file cannot be read.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        return [Finding("error", str(path), f"expected YAML, but {error}. Mend the line.")]
    if not isinstance(config, dict):
        got = type(config).__name__
        return [Finding("error", str(path), f"expected a mapping with cluster_name, provider, auth …; got {got}.")]
    found = [*_schema(config)]
    if not found:
        base = path.absolute().parent
        for check in (_provider, _placeholders, _auth, _mounts, _versions, _start_commands, _token, _tools):
            found += check(config, base)
    return sorted(found, key=lambda finding: finding.level)


def _error(where: str, message: str) -> Finding:
    return Finding("error", where, message)


def _schema(config: dict[str, Any]) -> list[Finding]:
    schema = json.loads((files("ray.autoscaler") / "ray-schema.json").read_text(encoding="utf-8"))
    known = sorted(schema["properties"])
    findings = []
    for key in sorted(set(config) - set(known)):
        findings.append(
            _error(key, f"unknown key; Ray {version('ray')} knows: {', '.join(known)}. Remove or rename it.")
        )
    for error in Draft7Validator(schema).iter_errors(config):
        where = ".".join(str(part) for part in error.absolute_path) or "the file"
        if error.validator != "additionalProperties" or where != "the file":
            findings.append(_error(where, f"{error.message}. See the comments of the cluster.yaml of this project."))
    for key in ("cluster_name", "provider"):
        if key not in config:
            findings.append(_error(key, "expected it; it is missing. Take it from the cluster.yaml of this project."))
    return findings


def _provider(config: dict[str, Any], base: Path) -> list[Finding]:
    provider = config["provider"]
    kind = provider.get("type")
    if kind != "local":
        if not config.get("available_node_types"):
            return [_error("available_node_types", f"expected the kinds of node for provider {kind}; there are none.")]
        head = config.get("head_node_type")
        if head not in config["available_node_types"]:
            known = ", ".join(config["available_node_types"])
            return [_error("head_node_type", f"expected one of {known}; got {head!r}.")]
        if kind == "aws":
            return [
                _error(
                    f"available_node_types.{name}",
                    "expected an ImageId with Python 3.11 or newer (Ubuntu 24.04): Ray's own default is Ubuntu 18.04.",
                )
                for name, node in config["available_node_types"].items()
                if not (node.get("node_config") or {}).get("ImageId")
            ]
        return []
    findings = []
    head, workers = provider.get("head_ip"), provider.get("worker_ips")
    if not head or not isinstance(workers, list):
        return [_error("provider", "expected head_ip and a list worker_ips for your own hosts.")]
    for address in [head, *workers]:
        if not _is_host(str(address)):
            findings.append(_error("provider", f"expected an IP address or host name; got {address!r}."))
    everyone = [head, *workers]
    for address in sorted({str(a) for a in everyone if everyone.count(a) > 1}):
        findings.append(_error("provider", f"{address} is listed twice; each host is one node (one IP, no ports)."))
    if config.get("available_node_types"):
        findings.append(_error("available_node_types", "provider local takes none: its hosts are all of one type."))
    if config.get("max_workers", len(workers)) < len(workers):
        findings.append(
            Finding("warning", "max_workers", f"{config['max_workers']} is below the {len(workers)} hosts listed.")
        )
    return findings


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return re.fullmatch(r"(?!-)[A-Za-z0-9.-]{1,253}", text) is not None and not re.fullmatch(r"[\d.]+", text)
    return True


def _placeholders(config: dict[str, Any], base: Path) -> list[Finding]:
    found = []
    for where in ("provider", "available_node_types"):
        names = sorted(set(PLACEHOLDERS.findall(json.dumps(config.get(where)))))
        found += [_error(where, f"{name} is a placeholder: put your own in its place.") for name in names]
    return found


def _auth(config: dict[str, Any], base: Path) -> list[Finding]:
    auth = config.get("auth", {})
    findings = []
    if not auth.get("ssh_user"):
        findings.append(_error("auth.ssh_user", "expected the user that ssh logs in as on every host."))
    key = auth.get("ssh_private_key")
    if key is None:
        if config["provider"].get("type") == "local":
            findings.append(_error("auth.ssh_private_key", "expected the key file that every host accepts."))
        return findings
    file = Path(key).expanduser()
    if not file.is_file():
        findings.append(
            _error("auth.ssh_private_key", f"expected a key file; there is none at {key}. Make one: ssh-keygen.")
        )
    elif file.stat().st_mode & 0o077:
        findings.append(
            _error("auth.ssh_private_key", f"{key} is readable by others and ssh refuses it: chmod 600 it.")
        )
    return findings


def _mounts(config: dict[str, Any], base: Path) -> list[Finding]:
    findings = []
    for remote, local in (config.get("file_mounts") or {}).items():
        if remote.rstrip("/").endswith("auth_token"):
            continue
        source = Path(str(local)).expanduser()
        if not (source if source.is_absolute() else base / source).exists():
            findings.append(_error(f"file_mounts.{remote}", f"expected a file or folder; there is none at {local}."))
    return findings


def _commands(config: dict[str, Any], *keys: str) -> list[str]:
    return [str(command) for key in keys for command in config.get(key) or []]


def _versions(config: dict[str, Any], base: Path) -> list[Finding]:
    findings = []
    everywhere = _commands(config, "setup_commands")
    one_sided = _commands(config, "head_setup_commands") + _commands(config, "worker_setup_commands")
    if any(re.search(r"\bpip install\b", command) for command in one_sided):
        findings.append(
            _error(
                "head_setup_commands",
                "installs on some nodes only; all nodes must have equal versions: setup_commands.",
            )
        )
    if not any(re.search(r"\bpip install\b.*fleet", command) for command in everywhere):
        findings.append(
            Finding(
                "warning", "setup_commands", "nothing installs fleet; then every node's image must have it already."
            )
        )
    for command in everywhere + one_sided:
        for name, pinned in re.findall(r"\b(ray|gradio|duckdb|claude-agent-sdk)(?:\[[^\]]*\])?==([\w.]+)", command):
            if pinned != version(name):
                findings.append(
                    _error(
                        "setup_commands", f"pins {name}=={pinned}, but this fleet needs {version(name)} on every node."
                    )
                )
    return findings


def _start_commands(config: dict[str, Any], base: Path) -> list[Finding]:
    findings = []
    head = _commands(config, "head_start_ray_commands")
    workers = _commands(config, "worker_start_ray_commands")
    if not any("fleet up" in command and "--cluster" in command for command in head):
        findings.append(
            _error(
                "head_start_ray_commands",
                "expected `fleet up --detach --cluster --autoscaling-config ~/ray_bootstrap_config.yaml`.",
            )
        )
    elif not any("--autoscaling-config" in command for command in head):
        findings.append(
            _error("head_start_ray_commands", "expected --autoscaling-config: without it no worker is started.")
        )
    joins = [command for command in workers if "fleet join" in command]
    if config["provider"].get("worker_ips", True) and not joins:
        findings.append(_error("worker_start_ray_commands", "expected `fleet join $RAY_HEAD_IP:6379 --detach`."))
    ports = re.findall(r"--ray-port[= ](\d+)", " ".join(head)) or ["6379"]
    for command in joins:
        port = found[1] if (found := re.search(r"fleet join \S+?:(\d+)", command)) else None
        if port != ports[0]:
            findings.append(
                _error("worker_start_ray_commands", f"joins port {port}, but the head's Ray listens on {ports[0]}.")
            )
    for command in head + workers:
        if re.search(r"\bray (start|stop)\b", command):
            findings.append(
                Finding(
                    "warning",
                    "start commands",
                    f"{command!r}: fleet starts and ends Ray itself; `ray stop` ends all Rays.",
                )
            )
    return findings


def _token(config: dict[str, Any], base: Path) -> list[Finding]:
    mounts = config.get("file_mounts") or {}
    local = next((value for key, value in mounts.items() if key.endswith("auth_token")), None)
    if local is None:
        return [_error("file_mounts", f"expected {TOKEN_FILE}: without it the workers are refused by the head's Ray.")]
    if not Path(str(local)).expanduser().is_file():
        return [_error("file_mounts", f"no token at {local}: run `fleet cluster check --fix` to make one.")]
    return []


def _tools(config: dict[str, Any], base: Path) -> list[Finding]:
    absent = [tool for tool in ("ssh", "rsync") if shutil.which(tool) is None]
    return [_error("this computer", f"{tool} is not installed; Ray's launcher needs it.") for tool in absent]
