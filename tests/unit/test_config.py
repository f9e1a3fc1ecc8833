from __future__ import annotations

from pathlib import Path

import pytest

from fleet.config import BUILTIN_ROLES, FleetConfig, load_config
from fleet.errors import ConfigError
from fleet.models import WorkspaceKind


def write(folder: Path, text: str) -> Path:
    file = folder / "fleet.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_without_a_file_the_three_roles_are_built_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(environ={})
    assert list(config.roles) == ["code_reviewer", "api_developer", "qa_tester"] == list(BUILTIN_ROLES)
    assert config.roles["code_reviewer"].max_turns == 10
    assert config.roles["api_developer"].tools == ("Read", "Write", "Edit", "Bash")
    assert config.host == "127.0.0.1"


def test_file_environment_and_arguments_win_in_this_order(tmp_path: Path) -> None:
    file = write(tmp_path, 'port = 1001\nhost = "127.0.0.2"\nlog_level = "DEBUG"\n')
    env = {"FLEET_PORT": "1002", "FLEET_HOST": "127.0.0.3"}
    config = load_config(file, environ=env, port=1003)
    assert (config.port, config.host, config.log_level) == (1003, "127.0.0.3", "DEBUG")


def test_an_argument_of_none_is_no_argument(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "port = 1"), environ={}, port=None).port == 1


def test_home_is_absolute_and_one_of_the_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(environ={"FLEET_HOME": "here"})
    assert config.home == tmp_path / "here"
    assert config.roots == (tmp_path, tmp_path / "here")
    assert config.store_path.parent == config.token_path.parent == config.record_path.parent == config.home


def test_several_paths_in_a_variable_are_split() -> None:
    assert load_config(environ={"FLEET_ROOTS": "/a:/b"}).roots == (Path("/a"), Path("/b"))


def test_a_role_is_changed_and_another_is_added(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        '[roles.qa_tester]\nagents = 3\n\n[roles.writer]\nprompt = "You write."\nworkspace = "worktree:/r@main"\n',
    )
    roles = load_config(file, environ={}).roles
    assert roles["qa_tester"].agents == 3
    assert roles["qa_tester"].prompt == BUILTIN_ROLES["qa_tester"]["prompt"]
    assert roles["writer"].workspace.kind is WorkspaceKind.WORKTREE
    assert (roles["writer"].workspace.path, roles["writer"].workspace.ref) == ("/r", "main")


@pytest.mark.parametrize(
    ("text", "line", "key", "expected"),
    [
        ("port = 1\nprot = 2\n", 2, "prot", "unknown key; expected one of:"),
        ("port = 70000\n", 1, "port", "less than or equal to 65535"),
        ('log_level = "LOUD"\n', 1, "log_level", "pattern"),
        ("\n[roles.qa_tester]\nmax_turns = 0\n", 3, "roles.qa_tester.max_turns", "greater than or equal to 1"),
        ("[roles.qa_tester]\nmax_turnz = 3\n", 2, "roles.qa_tester.max_turnz", "max_turns"),
        ("[roles.writer]\nagents = 1\n", 1, "roles.writer.prompt", "required"),
        ("[roles.qa_tester]\nmin_agents = 4\nmax_agents = 2\n", 2, "roles.qa_tester.min_agents", "at most max_agents"),
        ("[roles]\nqa_tester = 3\n", 2, "roles.qa_tester", "expected a table"),
        ("port = \n", 1, None, "expected TOML"),
    ],
)
def test_a_wrong_setting_is_named_with_file_line_key_and_what_was_expected(
    tmp_path: Path, text: str, line: int, key: str | None, expected: str
) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(file, environ={})
    assert caught.value.fields == {"file": str(file), "line": line, "key": key}
    assert f"{file}:{line}" in caught.value.message
    assert expected in caught.value.message


def test_a_wrong_variable_is_named() -> None:
    with pytest.raises(ConfigError, match="port"):
        load_config(environ={"FLEET_PORT": "many"})


def test_a_file_that_is_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a settings file"):
        load_config(tmp_path / "none.toml", environ={})


def test_settings_survive_json(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "[roles.qa_tester]\nagents = 2\n"), environ={})
    assert FleetConfig.model_validate(config.model_dump(mode="json")) == config
