"""A stand-in for the Claude Code executable: the same stream-json protocol in 5 MB and milliseconds.

For load, chaos and quick tests, where two hundred real processes of 200 MB have no room. It really runs the tools Bash,
Read, Write and Edit, asks for permission, writes and mirrors its transcript, resumes, and can be interrupted. What it
says is decided by the same scripts as the rehearsal model's: a prompt with directives is followed, any other one is
echoed at once. It uses the standard library only, and as little of it as it can at its start.

    install(folder)     writes the executable; give its path as `claude_path`
    python -m fleet.rehearsal.standin --output-format=stream-json …
"""

# ruff: noqa: PTH100, PTH103, PTH109, PTH118, PTH120, PTH123 - pathlib would cost more than all other imports

from __future__ import annotations

import json
import os
import re
import select
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from fleet.rehearsal.scripts.steps import Pace

VERSION = "standin"
DIRECTIVE = re.compile(r"^\s*(must:\s*)?(run|read|write|edit|tool|sleep|think|emit|say|fault):", re.M)
READ_ONLY = re.compile(
    r"(ls|cat|pwd|echo|test|head|tail|wc|true|git (log|show|diff|status))\b[^>|;&`$]*(&& echo \w+ \|\| echo \w+)?$"
)
OUTPUT_LIMIT = 30_000
"""Characters of a command's output that a tool result holds, as Claude Code has it."""
MAX_RETRIES = 4
PRICES = (3e-6, 15e-6)
"""Dollars per token of input and of output."""
REJECTED = (
    "The user doesn't want to proceed with this tool use. The tool use was rejected (eg. if it was a file edit, the "
    "new_string was NOT written to the file). STOP what you are doing and wait for the user to tell you how to proceed."
)
LOST = (
    "[Tool call interrupted: the session ended before this call's result was recorded, so its outcome is unknown. "
    "Check whether it took effect before relying on it.]"
)


class Interrupted(Exception):
    """The turn is over: somebody interrupted it."""


def install(folder: Path) -> Path:
    """Write the executable into a folder; return its path."""
    here = os.path.dirname(os.path.abspath(__file__))
    code = f"import sys; sys.path.insert(0, {here!r}); from standin import main; main()"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "claude"
    path.write_text(f'#!/bin/sh\nexec {_quoted(sys.executable)} -I -S -c {_quoted(code)} "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return path


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def new_uuid() -> str:
    """Return a random UUID; the module uuid would cost its import."""
    text = os.urandom(16).hex()
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}"


def now() -> str:
    """Return the time as Claude Code writes it."""
    seconds = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03d}Z"


class Options:
    """What of Claude Code's command line matters here."""

    def __init__(self, argv: list[str]) -> None:
        values: dict[str, str] = {}
        arguments = iter(argv)
        flag = ""
        for argument in arguments:
            if argument.startswith("--"):
                flag, sep, value = argument.partition("=")
                values[flag] = value if sep else ""
            else:
                values[flag] = argument
        self.session_id = values.get("--resume") or values.get("--session-id") or new_uuid()
        self.resume = "--resume" in values
        self.tools = [name for name in values.get("--tools", "Bash,Edit,Read,Write").split(",") if name]
        allowed = values.get("--allowedTools") or values.get("--allowed-tools") or ""
        self.rules = [rule.strip() for rule in re.findall(r"[^,(]+(?:\([^)]*\))?", allowed) if rule.strip()]
        self.mode = values.get("--permission-mode", "default")
        self.asks = values.get("--permission-prompt-tool") == "stdio"
        self.mirror = "--session-mirror" in values
        self.partial = "--include-partial-messages" in values
        self.model = values.get("--model") or "claude-standin"
        self.max_turns = int(values.get("--max-turns") or 0)
        self.schema = json.loads(values["--json-schema"]) if values.get("--json-schema") else None

    def allows(self, tool: str, given: dict[str, Any]) -> bool:
        """Return whether a call needs no permission."""
        if self.mode == "bypassPermissions" or tool == "StructuredOutput":
            return True
        if tool == "Read" or (self.mode == "acceptEdits" and tool in ("Edit", "Write")):
            return True
        command = str(given.get("command", ""))
        for rule in self.rules:
            name, _, pattern = rule.rstrip(")").partition("(")
            prefix = pattern.removesuffix("*").removesuffix(":").rstrip()
            if name == tool and (not pattern or tool != "Bash" or (command + " ").startswith(prefix + " ")):
                return True
        return tool == "Bash" and READ_ONLY.match(command) is not None


class Standin:
    """One process: a session, its turns one after the other."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.session_id = options.session_id
        self.cwd = os.getcwd()
        self.messages: list[dict[str, Any]] = []
        self.queue: list[dict[str, Any]] = []
        self.answers: dict[str, dict[str, Any]] = {}
        self.closed = False
        self.interrupted = False
        self.working = False
        self.child = 0
        self.parent: str | None = None
        self.results = 0
        self.cost = 0.0
        self.total = {"inputTokens": 0, "outputTokens": 0, "cacheReadInputTokens": 0, "cacheCreationInputTokens": 0}
        self.faults: dict[str, int] = {}
        self._buffer = b""
        self._file = self._transcript()

    # Reading and writing.

    def emit(self, type: str, **values: Any) -> None:
        """Write one frame."""
        frame = {"type": type, **values, "session_id": self.session_id, "uuid": new_uuid()}
        self._write((json.dumps(frame) + "\n").encode())

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(1, view) :]

    def poll(self, wait_s: float, *others: int) -> list[int]:
        """Read what came on stdin, waiting at most so long; return those of the other descriptors that are ready."""
        inputs = [*others] if self.closed else [0, *others]
        ready, _, _ = select.select(inputs, [], [], wait_s)
        if 0 in ready:
            ready.remove(0)
            chunk = os.read(0, 1 << 20)
            if not chunk:
                self.closed = True
            *lines, self._buffer = (self._buffer + chunk).split(b"\n")
            for line in lines:
                if line.strip():
                    self._take(line)
        return ready

    def _take(self, line: bytes) -> None:
        try:
            frame = json.loads(line)
            kind = frame["type"]
            if kind == "user":
                frame["message"]["content"]
        except (ValueError, KeyError, TypeError) as error:
            sys.stderr.write(f"Error parsing streaming input line: {error}\n")
            self._die(1)
        if kind == "user":
            self.queue.append(frame)
            mark = frame.setdefault("uuid", new_uuid())
            self.emit("command_lifecycle", command_uuid=mark, state="queued")
        elif kind == "control_request":
            self._control(frame["request_id"], frame["request"])
        elif kind == "control_response":
            self.answers[frame["response"].get("request_id", "")] = frame["response"]

    def _control(self, request_id: str, request: dict[str, Any]) -> None:
        subtype = request.get("subtype")
        response: dict[str, Any] = {"subtype": "success", "request_id": request_id, "response": {}}
        if subtype == "initialize":
            response["response"] = {
                "commands": [],
                "agents": [],
                "output_style": "default",
                "available_output_styles": ["default"],
                "models": [{"value": self.options.model, "displayName": "stand-in", "description": "no model"}],
                "account": {},
                "pid": os.getpid(),
                "hook_on_failure_supported": True,
            }
        elif subtype == "interrupt":
            self.interrupted = self.working
            response["response"] = {"still_queued": []}
        elif subtype not in ("set_model", "set_permission_mode", "end_session"):
            error = f"Unsupported control request subtype: {subtype}"
            response = {
                "subtype": "error",
                "request_id": request_id,
                "error": error,
                "error_code": "unsupported_request",
            }
        frame = {"type": "control_response", "response": response}
        self._write((json.dumps(frame) + "\n").encode())
        if subtype == "end_session":
            self._die(0)

    def pause(self, seconds: float) -> None:
        """Wait, reading what comes; an interrupt ends the turn."""
        until = time.monotonic() + seconds
        while True:
            left = until - time.monotonic()
            self.poll(max(0.0, left if not self.closed else min(left, 0.05)))
            self._check()
            if left <= 0:
                return

    def _check(self) -> None:
        if self.interrupted:
            raise Interrupted

    def _die(self, code: int) -> None:
        self._kill_child()
        os._exit(code)

    # The transcript.

    def _transcript(self) -> str:
        config = os.environ.get("CLAUDE_CONFIG_DIR") or os.path.join(os.environ.get("HOME", "."), ".claude")
        key = re.sub(r"[^A-Za-z0-9]", "-", self.cwd)
        return os.path.join(config, "projects", key, self.session_id + ".jsonl")

    def record(self, *entries: dict[str, Any]) -> None:
        """Append entries to the transcript and mirror them."""
        os.makedirs(os.path.dirname(self._file), exist_ok=True)
        with open(self._file, "a", encoding="utf-8") as out:
            out.writelines(json.dumps(entry) + "\n" for entry in entries)
        if self.options.mirror:
            frame = {"type": "transcript_mirror", "filePath": self._file, "entries": list(entries)}
            self._write((json.dumps(frame) + "\n").encode())

    def _entry(self, type: str, message: dict[str, Any], uuid: str, **values: Any) -> dict[str, Any]:
        entry = {
            "parentUuid": self.parent,
            "isSidechain": False,
            "type": type,
            "message": message,
            "uuid": uuid,
            "timestamp": now(),
            "userType": "external",
            "entrypoint": "sdk-py",
            "cwd": self.cwd,
            "sessionId": self.session_id,
            "version": VERSION,
            **values,
        }
        self.parent = uuid
        return entry

    def load(self) -> bool:
        """Read the transcript of the session that is to be resumed; return whether there is one."""
        try:
            with open(self._file, encoding="utf-8") as file:
                lines = file.read().splitlines()
        except OSError:
            return False
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                # The last line of a process that was killed.
                continue
            if entry.get("type") in ("user", "assistant") and isinstance(entry.get("message"), dict):
                message = entry["message"]
                self.messages.append({"role": message.get("role"), "content": message.get("content")})
                self.parent = entry.get("uuid")
        open_calls: dict[str, None] = {}
        for message in self.messages:
            for block in message["content"] if isinstance(message["content"], list) else ():
                if block.get("type") == "tool_use":
                    open_calls[block["id"]] = None
                elif block.get("type") == "tool_result":
                    open_calls.pop(block.get("tool_use_id"), None)
        for call in open_calls:
            result = {"type": "tool_result", "tool_use_id": call, "content": LOST, "is_error": True}
            said = [{"type": "text", "text": "No response requested."}]
            self._add("user", [result], frame=False)
            self._add("assistant", said, frame=False)
        return bool(self.messages)

    def _add(self, role: str, content: Any, *, frame: bool = True, uuid: str = "", **values: Any) -> None:
        """Add a message to the conversation: to the transcript, and as a frame."""
        message = {"role": role, "content": content, **values.pop("message", {})}
        self.messages.append({"role": role, "content": content})
        uuid = uuid or new_uuid()
        if frame:
            # As Claude Code counts its turns: by what came back to it.
            self.heard += role == "user"
            at = {"parent_tool_use_id": None, "uuid": uuid, "timestamp": now()}
            data = {"type": role, "message": message, "session_id": self.session_id, **at, **values}
            self._write((json.dumps(data) + "\n").encode())
        self.record(self._entry(role, message, uuid))

    # Turns.

    def run(self) -> int:
        """Answer messages until stdin ends; return the exit code."""
        if self.options.resume and not self.load():
            self._result(f"No conversation found with session ID: {self.session_id}", failed="error_during_execution")
            return 1
        while True:
            while not self.queue:
                if self.closed:
                    return 0
                self.poll(60.0)
            self.working, self.interrupted = True, False
            self._state("running")
            self._turn()
            self.working = False
            self._state("idle")

    def _state(self, state: str) -> None:
        if os.environ.get("CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS"):
            self.emit("system", subtype="session_state_changed", state=state)

    def _turn(self) -> None:
        """Answer one message, and what is said meanwhile."""
        self.started, self.turns, self.heard = time.monotonic(), 0, 0
        self.marks: list[str] = []
        self.counted = dict.fromkeys(self.total, 0)
        self.denials: list[dict[str, Any]] = []
        self.structured: Any = None
        frame = self._next_message()
        prompt = _text(frame["message"]["content"])
        self.emit(
            "system",
            subtype="init",
            cwd=self.cwd,
            tools=self.options.tools,
            mcp_servers=[],
            model=self.options.model,
            permissionMode=self.options.mode,
            slash_commands=[],
            apiKeySource="none",
            claude_code_version=VERSION,
            output_style="default",
            agents=[],
            skills=[],
            plugins=[],
            user_message_uuids=list(self.marks),
        )
        self._add("user", frame["message"]["content"], frame=False, uuid=frame["uuid"])
        state, failed, text, terminal = "completed", "", "", "completed"
        calling = False
        try:
            if not self.options.resume and len(self.messages) == 1 and not DIRECTIVE.search(prompt):
                text = self._echo(prompt)
            else:
                while True:
                    calling = False
                    said, calls = self._ask_model()
                    if not calls:
                        text = said
                        break
                    calling = True
                    for call in calls:
                        self._call(call)
                    if self.options.max_turns and self.turns >= self.options.max_turns:
                        failed = terminal = "max_turns"
                        break
                    self._hear()
        except Interrupted:
            state, failed = "cancelled", "interrupted"
            terminal = "aborted_tools" if calling else "aborted_streaming"
            words = "[Request interrupted by user for tool use]" if calling else "[Request interrupted by user]"
            self._add("user", [{"type": "text", "text": words}])
        except ApiError as error:
            terminal = "api_error"
            self._result(str(error), terminal="api_error", status=error.status, failed="success")
            self._lifecycle(state)
            return
        subtypes = {"max_turns": "error_max_turns", "interrupted": "error_during_execution", "": ""}
        self._result(text, terminal=terminal, failed=subtypes[failed])
        self._lifecycle(state)

    def _next_message(self) -> dict[str, Any]:
        frame = self.queue.pop(0)
        self.marks.append(frame["uuid"])
        self.emit("command_lifecycle", command_uuid=frame["uuid"], state="started")
        return frame

    def _lifecycle(self, state: str) -> None:
        for mark in self.marks:
            self.emit("command_lifecycle", command_uuid=mark, state=state)

    def _hear(self) -> None:
        """Take in what was said in mid-turn, as Claude Code passes it on."""
        self.poll(0.0)
        self._check()
        while self.queue:
            said = _text(self._next_message()["message"]["content"])
            words = (
                f"The user sent a new message while you were working:\n{said}\n\nThis is how Claude Code surfaces it."
            )
            self.messages.append({"role": "system", "content": words})

    def _echo(self, prompt: str) -> str:
        text = f"You said: {prompt}"
        usage = _usage(len(prompt) // 4 + 1, len(text) // 4 + 1)
        self._say([{"type": "text", "text": text}], usage, None)
        return text

    def _ask_model(self) -> tuple[str, list[dict[str, Any]]]:
        """Let the scripts decide; return the text and the tool calls of their answer."""
        model, directives = _scripts()
        tools: list[dict[str, Any]] = [{"name": name} for name in self.options.tools]
        if self.options.schema is not None:
            tools.append({"name": "StructuredOutput", "input_schema": self.options.schema})
        body = {"messages": self.messages, "tools": tools, "model": self.options.model}
        talk, step = model.decide(body)
        attempt = 0
        while fault := directives.fault_due(directives.parse(talk.order), step, str(talk.order_number), self.faults):
            attempt += 1
            self._retry(fault, attempt)
        self.emit("system", subtype="status", status="requesting", user_message_uuids=list(self.marks))
        if step.pace.delay_s:
            self.pause(step.pace.delay_s)
        content = model.content_of(talk, step, body)
        self._say(content, model.usage_of(body, content), step.pace)
        texts = [block["text"] for block in content if block["type"] == "text"]
        return (texts[-1] if texts else ""), [block for block in content if block["type"] == "tool_use"]

    def _retry(self, fault: Any, attempt: int) -> None:
        status = int(fault.what) if fault.what.isdigit() else None
        words = {429: "rate_limit", 529: "overloaded", 500: "server_error", 401: "authentication_failed"}
        error = words.get(status or 0, "unknown")
        if attempt > MAX_RETRIES or status in (400, 404):
            text = f"API Error: {status or 'the connection was cut'} {error} {_kind(status)}".strip()
            self._add("assistant", [{"type": "text", "text": text}], message={"model": "<synthetic>"})
            raise ApiError(text, status)
        delay = fault.retry_after_s or 0.05
        self.emit(
            "system",
            subtype="api_retry",
            attempt=attempt,
            max_retries=MAX_RETRIES,
            retry_delay_ms=delay * 1000,
            error_status=status,
            error=error,
        )
        self.pause(delay)

    def _say(self, content: list[dict[str, Any]], usage: dict[str, int], pace: Pace | None) -> None:
        """Emit an assistant message as Claude Code does: stream events, and a frame for each block."""
        self.turns += 1
        message_id = "msg_" + os.urandom(12).hex()
        begun = {**usage, "output_tokens": 1}
        head = {"id": message_id, "type": "message", "role": "assistant", "model": self.options.model}
        open_end = {"stop_reason": None, "stop_sequence": None, "usage": begun}
        self._event({"type": "message_start", "message": {**head, "content": [], **open_end}}, message_id)
        pieces = pace.pieces if pace is not None else 0
        for index, block in enumerate(content):
            empty = {"text": {"type": "text", "text": ""}, "tool_use": {**block, "input": {}}}.get(block["type"], block)
            self._event({"type": "content_block_start", "index": index, "content_block": empty}, message_id)
            if pieces and block["type"] == "text":
                self._stream(index, pieces, pace.pieces_per_s if pace is not None else 0.0, message_id)
                pieces = 0
            else:
                delta = _delta(block)
                self._event({"type": "content_block_delta", "index": index, "delta": delta}, message_id)
            self._add("assistant", [block], message={**head, **open_end})
            self._event({"type": "content_block_stop", "index": index}, message_id)
        stop = "tool_use" if content[-1]["type"] == "tool_use" else "end_turn"
        self._event(
            {"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None}, "usage": usage}, message_id
        )
        self._event({"type": "message_stop"}, message_id)
        for name, key in TOKENS:
            self.counted[name] += usage.get(key, 0)
        self._check()

    def _stream(self, index: int, pieces: int, per_s: float, message_id: str) -> None:
        """Emit pieces of text as events, so many a second."""
        started = time.monotonic()
        for number in range(1, pieces + 1):
            delta = {"type": "text_delta", "text": f"{number} "}
            self._event({"type": "content_block_delta", "index": index, "delta": delta}, message_id)
            ahead = number / per_s - (time.monotonic() - started) if per_s else 0.0
            if ahead > 0.001:
                self.pause(ahead)

    def _event(self, event: dict[str, Any], message_id: str) -> None:
        if self.options.partial:
            self.emit("stream_event", event=event, parent_tool_use_id=None, api_message_id=message_id)

    # Tools.

    def _call(self, call: dict[str, Any]) -> None:
        tool, given = call["name"], call["input"]
        denied = ""
        if tool not in self.options.tools and tool != "StructuredOutput":
            denied = f"<tool_use_error>Error: No such tool available: {tool}</tool_use_error>"
        elif not self.options.allows(tool, given):
            given, denied, ends = self._permission(call)
            if ends:
                self._result_of(call, denied, failed=True)
                raise Interrupted
            if denied:
                self.denials.append({"tool_name": tool, "tool_use_id": call["id"], "tool_input": call["input"]})
        if denied:
            self._result_of(call, denied, failed=True)
            return
        try:
            text, failed = self._execute(tool, given)
        except Interrupted:
            self._result_of(call, REJECTED, failed=True)
            raise
        self._result_of(call, text, failed)

    def _result_of(self, call: dict[str, Any], text: str, failed: bool) -> None:
        block = {"tool_use_id": call["id"], "type": "tool_result", "content": text, "is_error": failed}
        self._add("user", [block], tool_use_result=text)

    def _permission(self, call: dict[str, Any]) -> tuple[dict[str, Any], str, bool]:
        """Ask whether a call is allowed; return its input, the words of a refusal, and whether the turn ends."""
        if not self.options.asks:
            return call["input"], f"Claude requested permissions to use {call['name']}, but it needs approval.", False
        request_id = new_uuid()
        self._state("requires_action")
        request = {
            "subtype": "can_use_tool",
            "tool_name": call["name"],
            "display_name": call["name"],
            "input": call["input"],
            "description": str(call["input"].get("description", "")),
            "permission_suggestions": [],
            "tool_use_id": call["id"],
        }
        frame = {"type": "control_request", "request_id": request_id, "request": request}
        self._write((json.dumps(frame) + "\n").encode())
        while request_id not in self.answers:
            if self.closed:
                self._die(1)
            self.poll(60.0)
            if self.interrupted:
                cancel = {"type": "control_cancel_request", "request_id": request_id}
                self._write((json.dumps(cancel) + "\n").encode())
                return call["input"], REJECTED, True
        self._state("running")
        answer = self.answers.pop(request_id).get("response") or {}
        if answer.get("behavior") == "allow":
            return answer.get("updatedInput") or call["input"], "", False
        return call["input"], str(answer.get("message") or REJECTED), bool(answer.get("interrupt"))

    def _execute(self, tool: str, given: dict[str, Any]) -> tuple[str, bool]:
        """Run a tool; return its text and whether it failed."""
        path = os.path.join(self.cwd, str(given.get("file_path", "")))
        try:
            if tool == "Bash":
                return self._bash(str(given.get("command", "")))
            if tool == "StructuredOutput":
                self.structured = given
                return "Structured output provided successfully", False
            if tool == "Write":
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "w", encoding="utf-8") as out:
                    out.write(str(given.get("content", "")))
                return f"File created successfully at: {given.get('file_path')}", False
            with open(path, encoding="utf-8", errors="replace") as file:
                text = file.read()
            if tool == "Read":
                return "\n".join(f"{row}\t{line}" for row, line in enumerate(text.split("\n"), start=1)), False
            old, new = str(given.get("old_string", "")), str(given.get("new_string", ""))
            if text.count(old) != 1 and not given.get("replace_all"):
                return f"<tool_use_error>String to replace found {text.count(old)} times.</tool_use_error>", True
            with open(path, "w", encoding="utf-8") as out:
                out.write(text.replace(old, new))
            return f"The file {given.get('file_path')} has been updated successfully.", False
        except OSError as error:
            return f"<tool_use_error>{error.strerror}: {path}</tool_use_error>", True

    def _bash(self, command: str) -> tuple[str, bool]:
        """Run a command in a session of its own, reading what it says and what comes on stdin."""
        reading, writing = os.pipe()
        self.child = os.fork()
        if self.child == 0:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            try:
                os.execvp("bash", ["bash", "-c", command])
            except OSError:
                os._exit(127)
        os.close(writing)
        output, size, status, wait_s = [], 0, None, 0.002
        try:
            while True:
                if self.poll(wait_s, reading):
                    chunk = os.read(reading, 65536)
                    if size < OUTPUT_LIMIT:
                        output.append(chunk)
                    size += len(chunk)
                    if chunk:
                        continue
                    _, status = os.waitpid(self.child, 0)
                    break
                self._check()
                # Something that the command left behind may keep the pipe open.
                ended, status = os.waitpid(self.child, os.WNOHANG)
                if ended:
                    break
                wait_s = min(wait_s * 2, 0.05)
        except Interrupted:
            self._kill_child()
            raise
        finally:
            os.close(reading)
        self.child = 0
        code = os.waitstatus_to_exitcode(status)
        text = b"".join(output)[:OUTPUT_LIMIT].decode("utf-8", "replace").rstrip("\n")
        if code:
            return f"Exit code {code}\n{text}".rstrip("\n"), True
        return text or "(Bash completed with no output)", False

    def _kill_child(self) -> None:
        if self.child:
            try:
                os.killpg(self.child, signal.SIGKILL)
                os.waitpid(self.child, 0)
            except OSError:
                pass
            self.child = 0

    # The end of a turn.

    def _result(self, text: str, *, terminal: str = "", failed: str = "", status: int | None = None) -> None:
        counted = getattr(self, "counted", dict.fromkeys(self.total, 0))
        started = getattr(self, "started", time.monotonic())
        cost = counted["inputTokens"] * PRICES[0] + counted["outputTokens"] * PRICES[1]
        self.cost += cost
        for name, amount in counted.items():
            self.total[name] += amount
        marks = getattr(self, "marks", [])
        values: dict[str, Any] = {
            "subtype": failed or "success",
            "is_error": bool(failed),
            "duration_ms": int((time.monotonic() - started) * 1000),
            "duration_api_ms": 0,
            "num_turns": getattr(self, "heard", 0) + 1 if marks else 0,
            "stop_reason": "end_turn" if not failed else None,
            "total_cost_usd": self.cost,
            "usage": {key: counted[name] for name, key in TOKENS},
            "modelUsage": {self.options.model: {**self.total, "costUSD": self.cost}},
            "model_usage_since_last_result": {self.options.model: {**counted, "costUSD": cost}},
            "permission_denials": getattr(self, "denials", []),
            "terminal_reason": terminal,
            "user_message_uuids": list(marks),
            "queued_turn_count": len(self.queue),
            "result_index": self.results,
        }
        if marks:
            values["user_message_uuid"] = marks[0]
        if not failed or failed == "success":
            values |= {"result": text, "api_error_status": status}
        else:
            values["errors"] = [text or f"[standin] {terminal}"]
        if getattr(self, "structured", None) is not None:
            values["structured_output"] = self.structured
        self.results += 1
        self.emit("result", **values)


class ApiError(Exception):
    """The model service refused, as often as it was asked."""

    def __init__(self, text: str, status: int | None) -> None:
        super().__init__(text)
        self.status = status


TOKENS = (
    ("inputTokens", "input_tokens"),
    ("outputTokens", "output_tokens"),
    ("cacheReadInputTokens", "cache_read_input_tokens"),
    ("cacheCreationInputTokens", "cache_creation_input_tokens"),
)


def _usage(tokens_in: int, tokens_out: int) -> dict[str, int]:
    counts = {"input_tokens": tokens_in, "output_tokens": tokens_out}
    return {**counts, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}


def _kind(status: int | None) -> str:
    return {429: "rate_limit_error", 529: "Overloaded", 401: "authentication_error"}.get(status or 0, "")


def _delta(block: dict[str, Any]) -> dict[str, Any]:
    if block["type"] == "text":
        return {"type": "text_delta", "text": block["text"]}
    if block["type"] == "thinking":
        return {"type": "thinking_delta", "thinking": block["thinking"]}
    return {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(str(block.get("text", "")) for block in content if isinstance(block, dict))


def _scripts() -> tuple[Any, Any]:
    """Import the scripts; only now, because they cost more than all the rest of the start."""
    if "fleet" not in sys.modules:
        # The package without what its __init__ would import, which is not there under `python -I -S`.
        package = type(sys)("fleet")
        package.__path__ = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
        sys.modules["fleet"] = package
    from fleet.rehearsal import model
    from fleet.rehearsal.scripts import directives

    return model, directives


def main() -> None:
    """Be Claude Code."""
    if sys.argv[1:2] in (["--version"], ["-v"]):
        print(f"{VERSION} (Claude Code stand-in)")
        return
    standin = Standin(Options(sys.argv[1:]))
    signal.signal(signal.SIGTERM, lambda *_: standin._die(143))
    try:
        code = standin.run()
    except (BrokenPipeError, KeyboardInterrupt):
        code = 1
    standin._die(code)


if __name__ == "__main__":
    main()
