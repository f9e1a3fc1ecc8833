"""`serve.yaml` of a fleet is what Ray Serve takes, and gives back the same settings."""

from __future__ import annotations

from pathlib import Path

import yaml
from ray.serve.schema import ServeDeploySchema

from fleet.cluster.app import build_app_of
from fleet.cluster.serve_file import serve_file, write_serve_file
from fleet.config import FleetConfig, load_config
from fleet.revision import revision


def config_of(folder: Path) -> FleetConfig:
    settings = folder / "fleet.toml"
    settings.write_text(
        'host = "10.0.0.1"\nport = 8899\n[roles.writer]\nprompt = "Write."\nworkspace = "git:a/b@main"\n'
    )
    return load_config(settings, environ={}, home=folder / "home")


def test_the_file_holds_all_settings_for_its_owner_only(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    config.home.mkdir()
    path = write_serve_file(config, "http://127.0.0.1:8265", "/somewhere/ray_token")
    assert path == serve_file(config) and path.stat().st_mode & 0o777 == 0o600
    content = yaml.safe_load(path.read_text())
    schema = ServeDeploySchema.model_validate(content)
    assert (schema.http_options.host, schema.http_options.port) == ("10.0.0.1", 8899)
    (app,) = schema.applications
    assert app.import_path == "fleet.cluster.app:build_app_of"
    assert app.runtime_env == {"env_vars": {"FLEET_REVISION": revision()}}
    assert FleetConfig.model_validate(app.args["settings"]) == config


def test_the_comment_says_what_to_type(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    config.home.mkdir()
    text = write_serve_file(config, "http://127.0.0.1:8265", "/somewhere/ray_token").read_text()
    assert f"#     serve deploy --address http://127.0.0.1:8265 {config.home}/serve.yaml\n" in text
    assert "RAY_AUTH_TOKEN_PATH=/somewhere/ray_token" in text


def test_the_application_is_built_from_the_files_arguments(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    app = build_app_of({"settings": config.model_dump(mode="json")})
    assert app._bound_deployment.init_args[0] == config
