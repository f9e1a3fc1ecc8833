from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from fleet.cluster.head import Head, fresh_temp_dir
from fleet.cluster.ray_env import ensure_token, joined_environment, ray_environment
from fleet.cluster.record import RunRecord, find_keeper, read_record, take_lock, write_record


def environment(**given: str) -> dict[str, str]:
    return ray_environment(
        given, instance="/h#1", ray_token_path=Path("/h/ray_token"), loopback=True, credential_names=["MY_MODEL_KEY"]
    )


def test_no_credential_reaches_the_workers() -> None:
    secrets = {
        "ANTHROPIC_API_KEY": "1",
        "ANTHROPIC_AUTH_TOKEN": "2",
        "CLAUDE_CODE_OAUTH_TOKEN": "3",
        "AWS_SECRET_ACCESS_KEY": "4",
        "AWS_SESSION_TOKEN": "5",
        "MY_MODEL_KEY": "6",
        "DB_PASSWORD": "7",
    }
    env = environment(**secrets, PATH="/bin", HOME="/me")
    assert not set(secrets) & set(env)
    assert (env["PATH"], env["HOME"]) == ("/bin", "/me")


def test_our_ray_is_closed_and_knows_no_other_cluster() -> None:
    env = environment(RAY_ADDRESS="other:6379", RAY_AUTH_MODE="disabled", PYTHONDONTWRITEBYTECODE="1")
    assert "RAY_ADDRESS" not in env
    assert "PYTHONDONTWRITEBYTECODE" not in env
    assert env["RAY_AUTH_MODE"] == "token"
    assert env["RAY_AUTH_TOKEN_PATH"] == "/h/ray_token"
    assert env["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert env["RAY_USAGE_STATS_ENABLED"] == "0"
    assert env["FLEET_INSTANCE"] == "/h#1"


def test_what_joins_a_cluster_keeps_its_ray_settings_and_no_credentials() -> None:
    env = joined_environment(
        {"RAY_AUTH_MODE": "token", "MY_MODEL_KEY": "6"}, instance="/h#1", credential_names=["MY_MODEL_KEY"]
    )
    assert env["RAY_AUTH_MODE"] == "token"
    assert "MY_MODEL_KEY" not in env


def test_a_token_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token = ensure_token(path)
    assert len(token) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    assert ensure_token(path) == token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_heads_services_all_have_ports_of_their_own() -> None:
    head = Head(ip="127.0.0.1", port=1, dashboard_port=2, others=tuple(range(3, 12)), temp_dir="/tmp/x")
    ports = [argument.partition("=")[2] for argument in head.arguments() if "port=" in argument]
    own = [port for port in ports if port != "0"]
    assert len(own) == len(set(own)) == 9
    assert "--dashboard-host=127.0.0.1" in head.arguments()
    assert head.address == "127.0.0.1:1"


def test_rays_folder_is_made_anew_and_private(tmp_path: Path) -> None:
    folder = tmp_path / "ray"
    folder.mkdir()
    (folder / "old").write_text("")
    fresh_temp_dir(folder)
    assert list(folder.iterdir()) == []
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_rays_folder_is_not_taken_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "ray").symlink_to(tmp_path)
    with pytest.raises(PermissionError):
        fresh_temp_dir(tmp_path / "ray")


def test_a_record_is_read_back(tmp_path: Path) -> None:
    record = RunRecord(
        url="http://127.0.0.1:1", ray_address="127.0.0.1:2", pid=3, home=tmp_path, instance="i", started_at=time.time()
    )
    path = tmp_path / "run.json"
    write_record(path, record)
    read = read_record(path)
    assert read is not None
    assert read.model_copy(update={"started_at": record.started_at}) == record
    path.write_text("{")
    assert read_record(path) is None


def test_one_keeper_has_a_home(tmp_path: Path) -> None:
    first = take_lock(tmp_path, f"{tmp_path}#1")
    assert first is not None
    assert take_lock(tmp_path, f"{tmp_path}#2") is None
    first.close()
    again = take_lock(tmp_path, f"{tmp_path}#3")
    assert again is not None
    again.close()


def test_a_process_with_a_reused_pid_is_no_keeper(tmp_path: Path) -> None:
    (tmp_path / "keeper.lock").write_text(f'{{"pid": {os.getpid()}, "instance": "{tmp_path}#1"}}')
    assert find_keeper(tmp_path) is None
