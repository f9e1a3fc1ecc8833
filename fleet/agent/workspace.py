"""Makes the folder a run works in, keeps what it changed, and clears up when nobody needs it any more."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet.agent.git import CLONE_TIMEOUT_S, GitFailed, git, locked
from fleet.config import FleetConfig
from fleet.errors import WorkspaceRefused
from fleet.models import Workspace, WorkspaceKind

log = logging.getLogger("fleet.agent")

DIFF_LIMIT_BYTES = 5 * 1024 * 1024
PATCH_LIMIT_BYTES = 256 * 1024 * 1024
KEPT_FOLDERS = 100
"""Worktrees and scratch folders of ended tasks that a node keeps."""


@dataclass(frozen=True)
class Prepared:
    """A folder that is ready.

    Attributes:
        path: where Claude Code works.
        kind: how it was made.
        branch: the branch of its worktree.
        base: the commit that the task began at: the diff is against it.
        repository: the repository of the worktree.
        reused: whether an earlier run of the task has worked in it.
    """

    path: Path
    kind: WorkspaceKind
    branch: str | None = None
    base: str | None = None
    repository: Path | None = None
    reused: bool = False


@dataclass(frozen=True)
class Changes:
    """What was changed in a worktree since its base."""

    diff: str = ""
    files: tuple[str, ...] = ()


def check_path(text: str | None, roots: tuple[Path, ...]) -> Path:
    """Return a working directory as an absolute path without links.

    Raises:
        WorkspaceRefused: it is missing, no folder, or lies outside the roots.
    """
    shown = [str(root) for root in roots]
    if not text or "\0" in text:
        raise WorkspaceRefused(
            "Expected the path of a working directory, but got none. Give one under: " + ", ".join(shown),
            path=text,
            roots=shown,
        )
    path = Path(text).expanduser()
    if not path.is_absolute():
        raise WorkspaceRefused(
            f"Expected an absolute path, but got {text}: an agent has no current directory that you know.",
            path=text,
            roots=shown,
        )
    # Links are followed first: one below a root may lead anywhere.
    path = path.resolve()
    if not any(path.is_relative_to(root.expanduser().resolve()) for root in roots):
        raise WorkspaceRefused(
            f"Expected a working directory under one of {', '.join(shown)}, but got {path}. Use one of those, or add "
            "its parent to `roots` in fleet.toml.",
            path=str(path),
            roots=shown,
        )
    if not path.is_dir():
        raise WorkspaceRefused(
            f"Expected a directory on this node, but {path} is not one. Create it, or correct the path.",
            path=str(path),
            roots=shown,
        )
    return path


class Workspaces:
    """The working folders of a node."""

    def __init__(self, config: FleetConfig) -> None:
        self.config = config
        self.folder = config.work_path

    def folder_of(self, workspace: Workspace, task_id: str, continue_from: str | None = None) -> str:
        """Return the task whose folder a task works in: one that goes on with another's session works where that one
        did, unless it asks for something else."""
        kind = "scratch" if workspace.kind is WorkspaceKind.SCRATCH else "worktrees"
        if continue_from is None or workspace.kind is WorkspaceKind.DIRECTORY:
            return task_id
        folder = self.folder / kind
        earlier = str(self._read_note(folder / continue_from).get("of") or continue_from)
        if not (folder / earlier).is_dir() or self._read_note(folder / earlier).get("asked") != str(workspace):
            return task_id
        self._note(folder / task_id, {"of": earlier})
        return earlier

    async def prepare(self, workspace: Workspace, task_id: str) -> Prepared:
        """Make the folder of a task's run, or find it again.

        Raises:
            WorkspaceRefused: the path, the repository or the ref cannot be used.
        """
        if workspace.kind is WorkspaceKind.DIRECTORY:
            return Prepared(check_path(workspace.path, self.config.roots), workspace.kind)
        if workspace.kind is WorkspaceKind.SCRATCH:
            path = self.folder / "scratch" / task_id
            reused = path.is_dir()
            path.mkdir(parents=True, exist_ok=True)
            self._note(path, {"kind": "scratch", "asked": str(workspace), "done": False})
            return Prepared(path.resolve(), workspace.kind, reused=reused)
        try:
            return await self._worktree(workspace, task_id)
        except GitFailed as error:
            raise WorkspaceRefused(
                f"Expected a git worktree of {workspace.path} at {workspace.ref or 'HEAD'}, but git says: {error}. "
                "Check the repository and the ref.",
                path=str(workspace.path),
                roots=[str(root) for root in self.config.roots],
            ) from error

    async def _worktree(self, workspace: Workspace, task_id: str) -> Prepared:
        if workspace.kind is WorkspaceKind.WORKTREE:
            start = check_path(workspace.path, self.config.roots)
            top = (await git(start, "rev-parse", "--show-toplevel")).strip()
            repository = check_path(top or str(start), self.config.roots)
        else:
            repository = await self._clone(workspace.path)
        path, branch = self.folder / "worktrees" / task_id, f"fleet/{task_id}"
        async with locked(self._lock(repository)):
            reused = (path / ".git").exists()
            if not reused:
                await self._add(repository, path, branch, workspace)
            base = self._read_note(path).get("base")
            if not base:
                base = await self._base(repository, path, branch, workspace.ref)
            self._note(
                path,
                {
                    "kind": "worktree",
                    "repository": str(repository),
                    "branch": branch,
                    "base": base,
                    "done": False,
                    "asked": str(workspace),
                },
            )
        return Prepared(path.resolve(), workspace.kind, branch, str(base), repository, reused)

    async def _add(self, repository: Path, path: Path, branch: str, workspace: Workspace) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            # A leftover of an addition that was cut off: git refuses a folder that is not empty.
            shutil.rmtree(path)
        await git(repository, "worktree", "prune")
        known = True
        try:
            await git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"refs/heads/{branch}")
        except GitFailed:
            known = False
        if known:
            await git(repository, "worktree", "add", "--force", str(path), branch)
            return
        commit = await self._commit(repository, workspace.ref)
        await git(repository, "worktree", "add", "-b", branch, str(path), commit)

    async def _commit(self, repository: Path, ref: str | None) -> str:
        last: GitFailed | None = None
        # In a clone the origin's branch is the present one; the local one is from the day of cloning.
        for name in (f"refs/remotes/origin/{ref}", ref) if ref and self._is_clone(repository) else (ref or "HEAD",):
            try:
                found = await git(repository, "rev-parse", "--verify", "--end-of-options", f"{name}^{{commit}}")
                return found.strip().splitlines()[-1]
            except GitFailed as error:
                last = error
        raise GitFailed(f"there is no commit {ref or 'HEAD'} ({last})")

    def _is_clone(self, repository: Path) -> bool:
        return repository.parent == self.folder / "clones"

    async def _base(self, repository: Path, path: Path, branch: str, ref: str | None) -> str:
        """Return the commit that a branch of ours began at, also where its note is on another node."""
        try:
            start = await self._commit(repository, ref)
            return (await git(path, "merge-base", "--end-of-options", start, branch)).strip()
        except GitFailed:
            return (await git(path, "rev-parse", "HEAD")).strip()

    async def _clone(self, url: str | None) -> Path:
        roots = [str(root) for root in self.config.roots]
        if not url or url.startswith("-") or "::" in url:
            raise WorkspaceRefused(f"Expected the URL of a git repository, but got {url!r}.", path=url, roots=roots)
        local = url.removeprefix("file://")
        if local.startswith(("/", ".", "~")):
            url = str(check_path(local, self.config.roots))
        name = hashlib.sha256(url.encode()).hexdigest()[:16]
        path = self.folder / "clones" / f"{name}.git"
        async with locked(self._lock(path)):
            if not (path / "HEAD").exists():
                part = path.with_suffix(".part")
                shutil.rmtree(part, ignore_errors=True)
                part.parent.mkdir(parents=True, exist_ok=True)
                await git(part.parent, "clone", "--bare", "--", url, str(part), timeout_s=CLONE_TIMEOUT_S)
                # A bare clone has no place for the origin's branches; ours (fleet/…) must survive a fetch.
                await git(part, "config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*")
                part.rename(path)
            await git(path, "fetch", "--prune", "--tags", "origin", timeout_s=CLONE_TIMEOUT_S)
            with contextlib.suppress(GitFailed):
                await git(path, "remote", "set-head", "origin", "--auto")
                head = (await git(path, "rev-parse", "--verify", "refs/remotes/origin/HEAD")).strip()
                await git(path, "update-ref", "--no-deref", "HEAD", head)
        return path

    async def changes(self, prepared: Prepared) -> Changes:
        """Return what the task changed in its worktree, commits and uncommitted work together."""
        if prepared.base is None:
            return Changes()
        try:
            # New files count as changes, ignored ones do not.
            await git(prepared.path, "add", "--intent-to-add", "--", ".")
            names = await git(prepared.path, "diff", "--name-only", "-z", prepared.base, "--")
            diff = await git(
                prepared.path, "diff", "--no-color", "--no-ext-diff", prepared.base, "--", limit_bytes=DIFF_LIMIT_BYTES
            )
        except GitFailed as error:
            log.warning("diff failed path=%s: %s", prepared.path, error)
            return Changes()
        if len(diff.encode("utf-8", errors="replace")) >= DIFF_LIMIT_BYTES:
            diff = (
                diff[:DIFF_LIMIT_BYTES] + f"\n… the diff is cut after {DIFF_LIMIT_BYTES // 2**20} MiB; the whole of "
                f"it is on the branch {prepared.branch} in {prepared.path}\n"
            )
        return Changes(diff, tuple(name for name in names.split("\0") if name))

    def done(self, task_id: str) -> None:
        """Note that the outcome of the task's run is committed: its folder may be cleared up some day."""
        for kind in ("worktrees", "scratch"):
            path = self.folder / kind / task_id
            path = path.with_name(str(self._read_note(path).get("of") or task_id))
            if path.is_dir():
                self._note(path, self._read_note(path) | {"done": True, "done_at": time.time()})

    async def prune(self, keep: int = KEPT_FOLDERS) -> list[Path]:
        """Remove the folders of ended tasks, the oldest first, but for the last `keep`; return those removed.

        What was not committed is kept as a patch; the branches stay in the repository.
        """
        removed = []
        for kind in ("worktrees", "scratch"):
            folder = self.folder / kind
            if not folder.is_dir():
                continue
            ended = []
            for path in folder.iterdir():
                note = self._read_note(path) if path.is_dir() else {}
                if note.get("done"):
                    ended.append((float(note.get("done_at") or 0.0), path))
            for _, path in sorted(ended)[: max(0, len(ended) - keep)]:
                if await self.remove(path):
                    removed.append(path)
        return removed

    async def remove(self, path: Path) -> bool:
        """Remove a worktree or scratch folder; False when its uncommitted work could not be kept."""
        note = self._read_note(path)
        if note.get("kind") == "worktree":
            try:
                await self.save_patch(path)
            except (GitFailed, OSError) as error:
                log.warning("worktree kept: its work could not be saved path=%s: %s", path, error)
                return False
            repository = Path(str(note.get("repository")))
            with contextlib.suppress(GitFailed):
                async with locked(self._lock(repository)):
                    await git(repository, "worktree", "remove", "--force", str(path))
        shutil.rmtree(path, ignore_errors=True)
        self._note_path(path).unlink(missing_ok=True)
        return True

    async def save_patch(self, path: Path) -> Path | None:
        """Write a worktree's uncommitted work as a patch that `git apply` takes; None when there is none."""
        await git(path, "add", "--intent-to-add", "--", ".")
        patch = await git(
            path,
            "diff",
            "--binary",
            "--no-color",
            "--no-ext-diff",
            "HEAD",
            "--",
            limit_bytes=PATCH_LIMIT_BYTES,
            errors="surrogateescape",
        )
        if not patch:
            return None
        if len(patch) >= PATCH_LIMIT_BYTES:
            raise GitFailed("the uncommitted work is larger than 256 MiB")
        folder = self.config.home / "patches"
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{path.name}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}.patch"
        target.write_text(patch, encoding="utf-8", errors="surrogateescape")
        return target

    def _lock(self, repository: Path) -> Path:
        return self.folder / "locks" / hashlib.sha256(str(repository).encode()).hexdigest()[:16]

    def _note_path(self, path: Path) -> Path:
        return path.with_name(path.name + ".json")

    def _read_note(self, path: Path) -> dict[str, Any]:
        try:
            data = json.loads(self._note_path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return data if isinstance(data, dict) else {}

    def _note(self, path: Path, note: dict[str, Any]) -> None:
        target = self._note_path(path)
        part = target.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(note), encoding="utf-8")
        part.replace(target)
