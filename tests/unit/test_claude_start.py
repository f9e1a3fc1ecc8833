"""The command line, the environment, the credentials and the lines of Claude Code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fleet.claude.argv import base_tools, claude_argv
from fleet.claude.credentials import BY_DESCRIPTOR, NAMES, find_credentials, handed_over, rehearsal_credentials
from fleet.claude.environment import claude_environment
from fleet.claude.locate import bundled_claude, find_claude
from fleet.claude.transport import LineSplitter, parse_line
from fleet.config import FleetConfig
from fleet.errors import ClaudeNotFound, CredentialsMissing
from fleet.models import Limits, Role

ROLE = Role(name="tester", prompt="--dangerous words", tools=("Read", "Bash(git *)", "Bash(ls:*)", "mcp__a__b"))


def argv(**changes: object) -> list[str]:
    role = ROLE.model_copy(update=changes)
    return claude_argv(Path("/claude"), role, session_id="s-1")


def test_base_tools_are_the_names_in_rules_once() -> None:
    assert base_tools(("Read", "Bash(git *)", "Bash", "mcp__x__y", "Agent", "ListAgents")) == ["Read", "Bash"]


def test_no_value_can_become_a_flag() -> None:
    line = argv(model="--evil", fallback_model="-x")
    flags = {"--verbose", "--include-partial-messages", "--session-mirror", "--strict-mcp-config"}
    assert all(part in flags or ("=" in part and part.startswith("--")) for part in line[1:])
    assert "--append-system-prompt=--dangerous words" in line


def test_a_role_becomes_a_command_line() -> None:
    line = argv(tools_denied=("Bash(rm *)",), max_cost_usd=0.5, model="m", permission_mode="acceptEdits")
    assert "--tools=Read,Bash" in line
    assert "--allowedTools=Read,Bash(git *),Bash(ls:*),mcp__a__b" in line
    assert "--disallowedTools=Bash(rm *)" in line
    assert "--max-budget-usd=0.5" in line
    assert "--max-turns=15" in line
    assert "--permission-mode=acceptEdits" in line
    assert "--setting-sources=" in line
    assert "--session-id=s-1" in line


def test_a_task_changes_limits_rules_and_session() -> None:
    schema = {"type": "object"}
    line = claude_argv(
        Path("/claude"),
        ROLE,
        session_id="s-2",
        resume=True,
        limits=Limits(max_turns=3, max_cost_usd=2),
        rules=("Write",),
        output_schema=schema,
    )
    assert {"--resume=s-2", "--max-turns=3", "--max-budget-usd=2", "--tools=Read,Bash,Write"} <= set(line)
    assert f"--json-schema={json.dumps(schema)}" in line


def test_a_role_may_replace_the_prompt_and_have_servers() -> None:
    line = argv(prompt_mode="replace", mcp_servers={"a": {"command": "x"}})
    assert "--system-prompt=--dangerous words" in line
    assert '--mcp-config={"mcpServers": {"a": {"command": "x"}}}' in line


def test_a_key_goes_by_descriptor_and_never_into_the_environment(tmp_path: Path) -> None:
    found = find_credentials({"ANTHROPIC_API_KEY": "sk-secret-1", "CLAUDE_CODE_OAUTH_TOKEN": "oat-1"}, tmp_path)
    assert found.kind == "api_key"
    assert found.by_descriptor == {BY_DESCRIPTOR["ANTHROPIC_API_KEY"]: "sk-secret-1"}
    assert "sk-secret-1" not in repr(found)
    assert found.secrets == ("sk-secret-1",)
    env = claude_environment(
        {"PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "x", "RAY_AUTH_TOKEN": "y", "CLAUDECODE": "1", "FLEET_TOKEN": "z"},
        found,
        config_dir=tmp_path,
        run_id="r-1",
        agent_id="a-1",
        owner="o",
    )
    assert not {"AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "CLAUDECODE", "FLEET_TOKEN", "ANTHROPIC_API_KEY"} & set(env)
    assert (env["FLEET_RUN_ID"], env["FLEET_AGENT_ID"]) == ("r-1", "a-1")
    assert env["CLAUDE_CONFIG_DIR"] == str(tmp_path)


@pytest.mark.parametrize(
    ("environ", "kind"),
    [
        ({"CLAUDE_CODE_OAUTH_TOKEN": "t"}, "oauth"),
        ({"ANTHROPIC_AUTH_TOKEN": "t", "ANTHROPIC_BASE_URL": "http://gate"}, "gateway"),
        ({"CLAUDE_CODE_USE_BEDROCK": "1", "AWS_REGION": "eu-west-1"}, "bedrock"),
        ({"CLAUDE_CODE_USE_VERTEX": "true", "CLOUD_ML_REGION": "europe-west1"}, "vertex"),
    ],
)
def test_all_usual_ways_are_found(environ: dict[str, str], kind: str, tmp_path: Path) -> None:
    found = find_credentials({**environ, "UNRELATED": "x"}, tmp_path)
    assert found.kind == kind
    assert "UNRELATED" not in found.environ
    assert set(found.environ) <= NAMES


def test_a_login_is_used_where_it_is_and_only_there(tmp_path: Path) -> None:
    (tmp_path / ".claude").mkdir()
    (tmp_path / ".claude" / ".credentials.json").write_text("{}")
    assert find_credentials({}, tmp_path).config_dir == tmp_path / ".claude"
    with pytest.raises(CredentialsMissing):
        find_credentials({}, tmp_path, one_machine=False)


def test_without_credentials_it_says_what_to_set_and_how_to_rehearse(tmp_path: Path) -> None:
    with pytest.raises(CredentialsMissing, match=r"ANTHROPIC_API_KEY.*--rehearsal"):
        find_credentials({"ANTHROPIC_API_KEY": ""}, tmp_path)


def test_what_was_handed_over_is_read(tmp_path: Path) -> None:
    assert handed_over(tmp_path) == {}
    (tmp_path / "credentials.json").write_text('{"ANTHROPIC_API_KEY": "k"}')
    assert handed_over(tmp_path) == {"ANTHROPIC_API_KEY": "k"}


def test_the_rehearsal_has_an_address_and_no_real_key() -> None:
    assert rehearsal_credentials("http://127.0.0.1:1").visible == {"ANTHROPIC_BASE_URL": "http://127.0.0.1:1"}


def test_claude_is_found_in_the_sdk_or_where_the_setting_says(tmp_path: Path) -> None:
    assert find_claude(FleetConfig()) == bundled_claude()
    with pytest.raises(ClaudeNotFound, match="claude_path"):
        find_claude(FleetConfig(claude_path=tmp_path / "none"))


def test_lines_are_put_together_over_chunks() -> None:
    splitter = LineSplitter()
    assert splitter.push(b"one\ntw") == [b"one"]
    assert splitter.push(b"o\n\nthree") == [b"two", b""]
    assert splitter.rest() == b"three"


def test_a_line_over_the_limit_is_left_out_and_the_next_is_whole() -> None:
    splitter = LineSplitter(limit=10)
    assert splitter.push(b"x" * 8) == []
    assert splitter.push(b"x" * 8 + b"\nnext\n") == [b"next"]
    assert splitter.dropped == 1


def test_a_frame_survives_invalid_utf8_and_other_lines_are_none() -> None:
    assert parse_line(b'{"a": "\xff"}') == {"a": "�"}
    assert parse_line(b"[debug] words") is None
    assert parse_line(b'{"cut": ') is None
