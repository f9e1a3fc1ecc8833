"""Working folders, with real git."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fleet.agent import workspace as module
from fleet.agent.git import GitFailed, git
from fleet.agent.workspace import Workspaces
from fleet.config import FleetConfig
from fleet.errors import WorkspaceRefused
from fleet.models import Workspace, WorkspaceKind

NAMED = ("-c", "user.name=a", "-c", "user.email=a@b")


async def commit(repo: Path, name: str, text: str) -> None:
    (repo / name).write_text(text)
    await git(repo, "add", ".")
    await git(repo, *NAMED, "commit", "-qm", f"Write {name}.")


@pytest.fixture
async def repo(tmp_path: Path) -> Path:
    path = tmp_path / "repo"
    path.mkdir()
    await git(path, "init", "-q", "-b", "main")
    await commit(path, "code.py", "x = 1\n")
    return path


@pytest.fixture
def spaces(tmp_path: Path) -> Workspaces:
    return Workspaces(FleetConfig(home=tmp_path / "home", roots=(tmp_path,)))


def worktree(repo: Path, ref: str | None = None, kind: WorkspaceKind = WorkspaceKind.WORKTREE) -> Workspace:
    return Workspace(kind=kind, path=str(repo), ref=ref)


async def test_a_later_run_of_a_task_finds_the_worktree_of_the_first(spaces: Workspaces, repo: Path) -> None:
    first = await spaces.prepare(worktree(repo), "t-1")
    (first.path / "code.py").write_text("x = 2\n")
    await git(first.path, *NAMED, "commit", "-qam", "Second.")
    second = await spaces.prepare(worktree(repo), "t-1")
    assert (second.path, second.base, second.branch, second.reused) == (first.path, first.base, "fleet/t-1", True)
    changes = await spaces.changes(second)
    assert changes.files == ("code.py",)
    assert "+x = 2" in changes.diff


async def test_a_worktree_that_was_lost_is_made_again_on_its_branch(spaces: Workspaces, repo: Path) -> None:
    first = await spaces.prepare(worktree(repo), "t-1")
    (first.path / "code.py").write_text("x = 2\n")
    await git(first.path, *NAMED, "commit", "-qam", "Second.")
    assert await spaces.remove(first.path)
    again = await spaces.prepare(worktree(repo), "t-1")
    assert (again.path / "code.py").read_text() == "x = 2\n"
    assert again.base == first.base


async def test_several_agents_make_worktrees_of_one_repository_at_once(spaces: Workspaces, repo: Path) -> None:
    made = await asyncio.gather(*(spaces.prepare(worktree(repo), f"t-{n}") for n in range(6)))
    assert len({each.path for each in made}) == 6


async def test_a_clone_is_made_once_and_follows_its_origin(spaces: Workspaces, repo: Path) -> None:
    kind = WorkspaceKind.GIT
    first = await spaces.prepare(worktree(repo, kind=kind), "t-1")
    await commit(repo, "new.py", "y = 1\n")
    second = await spaces.prepare(worktree(repo, kind=kind), "t-2")
    assert not (first.path / "new.py").exists()
    assert (second.path / "new.py").exists()
    assert first.repository == second.repository
    by_branch = await spaces.prepare(worktree(repo, ref="main", kind=kind), "t-3")
    assert (by_branch.path / "new.py").exists()


async def test_what_git_refuses_is_refused_with_its_words(spaces: Workspaces, repo: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkspaceRefused, match="no commit nowhere"):
        await spaces.prepare(worktree(repo, ref="nowhere"), "t-1")
    with pytest.raises(WorkspaceRefused, match="no commit --help"):
        await spaces.prepare(worktree(repo, ref="--help"), "t-1")
    plain = tmp_path / "plain"
    plain.mkdir()
    with pytest.raises(WorkspaceRefused):
        await spaces.prepare(worktree(plain), "t-2")
    for url in ("ext::sh -c id", "--upload-pack=id", "/etc"):
        with pytest.raises(WorkspaceRefused):
            await spaces.prepare(Workspace(kind=WorkspaceKind.GIT, path=url), "t-3")


async def test_a_repository_whose_top_lies_outside_the_roots_is_refused(repo: Path) -> None:
    inner = repo / "inner"
    inner.mkdir()
    spaces = Workspaces(FleetConfig(home=repo.parent / "home", roots=(inner,)))
    with pytest.raises(WorkspaceRefused):
        await spaces.prepare(worktree(inner), "t-1")


async def test_ignored_files_are_no_change_and_binary_ones_are_named(spaces: Workspaces, repo: Path) -> None:
    await commit(repo, ".gitignore", "*.log\n")
    made = await spaces.prepare(worktree(repo), "t-1")
    (made.path / "a.log").write_text("noise")
    (made.path / "b.bin").write_bytes(b"\0\1\2\xff")
    changes = await spaces.changes(made)
    assert changes.files == ("b.bin",)
    assert "Binary files" in changes.diff


async def test_a_huge_diff_is_cut_and_says_so(spaces: Workspaces, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DIFF_LIMIT_BYTES", 10_000)
    made = await spaces.prepare(worktree(repo), "t-1")
    (made.path / "big.txt").write_text("line\n" * 500_000)
    changes = await spaces.changes(made)
    assert len(changes.diff) < 20_000
    assert "the diff is cut" in changes.diff


async def test_only_folders_of_committed_outcomes_are_pruned_and_their_work_is_kept(
    spaces: Workspaces, repo: Path
) -> None:
    made = [await spaces.prepare(worktree(repo), f"t-{n}") for n in range(3)]
    (made[0].path / "code.py").write_bytes(b"caf\xe9 = 1\n")
    scratch = await spaces.prepare(Workspace(), "t-9")
    spaces.done("t-0")
    spaces.done("t-1")
    spaces.done("t-9")
    assert set(await spaces.prune(keep=1)) == {made[0].path}
    assert not made[0].path.exists()
    assert made[1].path.exists()
    assert made[2].path.exists()
    assert scratch.path.exists()
    patch = next((spaces.config.home / "patches").iterdir())
    again = await spaces.prepare(worktree(repo), "t-0")
    await git(again.path, "apply", str(patch))
    assert (again.path / "code.py").read_bytes() == b"caf\xe9 = 1\n"


async def test_a_task_that_goes_on_with_another_works_where_that_one_did(spaces: Workspaces, repo: Path) -> None:
    asked = worktree(repo)
    first = await spaces.prepare(asked, "t-1")
    assert spaces.folder_of(asked, "t-2", "t-1") == "t-1"
    assert (await spaces.prepare(asked, "t-1")).path == first.path
    assert spaces.folder_of(asked, "t-3", "t-2") == "t-1"
    assert spaces.folder_of(worktree(repo, ref="main"), "t-4", "t-1") == "t-4"
    assert spaces.folder_of(asked, "t-5") == "t-5"
    assert spaces.folder_of(asked, "t-6", "t-none") == "t-6"


async def test_git_has_a_time_limit(tmp_path: Path) -> None:
    with pytest.raises(GitFailed, match="longer than"):
        await git(tmp_path, "-c", "alias.wait=!sleep 60", "wait", timeout_s=0.3)
