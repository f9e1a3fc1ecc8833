"""`fleet cluster check`: what is wrong with a cluster file is said before any machine is touched."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fleet.cluster.file_check import check_file

OURS = Path(__file__).parents[2] / "cluster.yaml"


@pytest.fixture
def good(tmp_path: Path) -> dict[str, Any]:
    key = tmp_path / "key"
    key.write_text("key")
    key.chmod(0o600)
    token = tmp_path / "auth_token"
    token.write_text("token")
    config = yaml.safe_load(OURS.read_text())
    config["provider"] |= {"head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2", "10.0.0.3"]}
    config["auth"]["ssh_private_key"] = str(key)
    config["file_mounts"] = {"~/fleet-source": ".", "~/.ray/auth_token": str(token)}
    return config


@pytest.fixture(autouse=True)
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda tool: f"/usr/bin/{tool}")


def findings(config: dict[str, Any], folder: Path) -> dict[str, str]:
    file = folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(config))
    return {found.where: found.message for found in check_file(file)}


def test_our_file_needs_only_names_filled_in(good: dict[str, Any], tmp_path: Path) -> None:
    assert findings(good, tmp_path) == {}


def test_our_file_as_it_stands_names_every_placeholder() -> None:
    messages = " ".join(found.message for found in check_file(OURS))
    assert "192.0.2.10 is a placeholder" in messages
    assert "192.0.2.12 is a placeholder" in messages


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
def test_a_cloud_block_in_place_of_the_provider_fits_the_schema(
    cloud: str, good: dict[str, Any], tmp_path: Path
) -> None:
    block = re.search(rf"# --- {cloud}:[^\n]*\n(.*?)# --- end {cloud} ---", OURS.read_text(), re.S)
    assert block is not None
    cloud_config = yaml.safe_load("\n".join(line[2:] for line in block[1].splitlines()))
    key = good["auth"]["ssh_private_key"]
    merged = good | cloud_config
    if "ssh_private_key" in merged["auth"]:
        merged["auth"]["ssh_private_key"] = key
    wrong = findings(merged, tmp_path)
    assert {where: text for where, text in wrong.items() if "placeholder" not in text} == {}
    kinds = {node["labels"]["kind"] for name, node in merged["available_node_types"].items() if name != "head"}
    assert kinds == {"developer", "reviewer"}, "an autoscaled type of worker per kind of agent"


def test_aws_needs_an_image_that_is_new_enough(good: dict[str, Any], tmp_path: Path) -> None:
    node = {"node_config": {"InstanceType": "m6i.large"}, "resources": {}}
    cloud = {"provider": {"type": "aws", "region": "us-west-2"}, "head_node_type": "head"}
    wrong = findings(good | cloud | {"available_node_types": {"head": node}}, tmp_path)
    assert "ImageId" in wrong["available_node_types.head"]
    node["node_config"]["ImageId"] = "ami-my-image"
    wrong = findings(good | cloud | {"available_node_types": {"head": node}}, tmp_path)
    assert "placeholder" in wrong["available_node_types"]


@pytest.mark.parametrize(
    ("change", "where", "says"),
    [
        ({"cluster_nam": "x"}, "cluster_nam", "unknown key"),
        ({"provider": {"type": "local", "head_ip": "10.0.0.1"}}, "provider", "worker_ips"),
        ({"provider": {"type": "local", "head_ip": "10.0.0.1", "worker_ips": ["10.0.0.1"]}}, "provider", "twice"),
        ({"provider": {"type": "local", "head_ip": "10.0.0.1:22", "worker_ips": []}}, "provider", "IP address"),
        ({"auth": {"ssh_user": "me", "ssh_private_key": "/none"}}, "auth.ssh_private_key", "no"),
        ({"file_mounts": {"~/x": "./absent", "~/.ray/auth_token": "/none"}}, "file_mounts.~/x", "absent"),
        ({"file_mounts": {}}, "file_mounts", "refused"),
        ({"setup_commands": ["pip install fleet ray[default]==1.0"]}, "setup_commands", "needs"),
        ({"head_setup_commands": ["pip install fleet"]}, "head_setup_commands", "equal versions"),
        ({"head_start_ray_commands": ["ray start --head"]}, "head_start_ray_commands", "fleet up"),
        ({"head_start_ray_commands": ["fleet up -d --cluster"]}, "head_start_ray_commands", "--autoscaling-config"),
        ({"worker_start_ray_commands": ["fleet join $RAY_HEAD_IP:7000"]}, "worker_start_ray_commands", "7000"),
    ],
)
def test_each_mistake_is_named(
    change: dict[str, Any], where: str, says: str, good: dict[str, Any], tmp_path: Path
) -> None:
    wrong = findings(good | change, tmp_path)
    assert where in wrong, wrong
    assert says in wrong[where]


def test_what_is_no_mapping_is_said_plainly(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("- a\n")
    assert "expected a mapping" in check_file(file)[0].message
    file.write_text("a: [")
    assert "expected YAML" in check_file(file)[0].message
