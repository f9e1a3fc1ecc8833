"""The command line of a Claude Code process, made from a role. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fleet.models import Limits, Role

HIDDEN_TOOLS = ("Agent", "Monitor", "ScheduleWakeup", "Workflow", "SendMessage", "ListAgents")
"""They start work that outlives a turn, or reach other agents of the node: never offered."""


def base_tools(rules: Sequence[str]) -> list[str]:
    """Return the names of the built-in tools in rules: `Bash(git *)` → `Bash`; each once, in order."""
    names = dict.fromkeys(rule.partition("(")[0].strip() for rule in rules)
    return [name for name in names if name and not name.startswith("mcp__") and name not in HIDDEN_TOOLS]


def claude_argv(
    claude: Path,
    role: Role,
    *,
    session_id: str,
    resume: bool = False,
    limits: Limits | None = None,
    rules: Sequence[str] = (),
    output_schema: dict[str, Any] | None = None,
) -> list[str]:
    """Return the command line of one run.

    Args:
        claude: the executable.
        role: prompt, tools, model and limits.
        session_id: the Claude session that is begun or, with `resume`, gone on with.
        resume: whether the session exists already.
        limits: the task's own bounds, where they differ from the role's.
        rules: tool rules a person allowed for the task.
        output_schema: a JSON schema that the answer must fit.
    """
    limits = limits or Limits()
    allowed = [*role.tools, *rules]
    argv = [str(claude), "--output-format=stream-json", "--verbose", "--input-format=stream-json"]
    argv += ["--include-partial-messages", f"--setting-sources={','.join(role.setting_sources)}"]
    # Values stand behind `=`: a value can never become a flag of its own.
    argv.append(f"--tools={','.join(base_tools(allowed))}")
    if allowed:
        argv.append(f"--allowedTools={','.join(allowed)}")
    if role.tools_denied:
        argv.append(f"--disallowedTools={','.join(role.tools_denied)}")
    argv += [f"--permission-mode={role.permission_mode}", "--permission-prompt-tool=stdio", "--session-mirror"]
    prompt_flag = "--append-system-prompt" if role.prompt_mode == "append" else "--system-prompt"
    argv.append(f"{prompt_flag}={role.prompt}")
    if not role.setting_sources:
        argv.append("--strict-mcp-config")
    if role.mcp_servers:
        argv.append(f"--mcp-config={json.dumps({'mcpServers': role.mcp_servers})}")
    argv.append(f"--max-turns={limits.max_turns or role.max_turns}")
    if (cost := limits.max_cost_usd or role.max_cost_usd) is not None:
        argv.append(f"--max-budget-usd={cost:.10g}")
    if role.model:
        argv.append(f"--model={role.model}")
    if role.fallback_model:
        argv.append(f"--fallback-model={role.fallback_model}")
    if output_schema is not None:
        argv.append(f"--json-schema={json.dumps(output_schema)}")
    argv.append(f"--resume={session_id}" if resume else f"--session-id={session_id}")
    return argv
