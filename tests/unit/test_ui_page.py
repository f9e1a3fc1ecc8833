"""The page's shell, without a browser: what it loads, what it must never do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fleet.models import QueryResult
from fleet.store.memory import MemoryStore
from fleet.ui import query
from fleet.ui.app import STATIC, build_blocks, head
from fleet.ui.pages import TABS, place
from tests.unit.twins import TwinRouter, make_config

SCRIPTS = sorted(STATIC.glob("*.js"))


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The page over twins."""
    config = make_config(tmp_path_factory.mktemp("ui"))
    store = MemoryStore()
    return build_blocks(config, store, TwinRouter(config, store), None)


class TestShell:
    def test_every_tab_has_its_place_and_its_view(self, blocks: Any) -> None:
        components = blocks.get_config_file()["components"]
        tabs = [part["props"]["id"] for part in components if part["type"] == "tabitem"]
        assert tabs == [name for name, _ in TABS]
        main = (STATIC / "main.js").read_text()
        for name in ["header", *tabs]:
            assert re.search(rf"^  {name}: \w+View,$", main, re.MULTILINE), name

    def test_no_function_of_the_page_is_a_public_endpoint(self, blocks: Any) -> None:
        visible = {call["api_visibility"] for call in blocks.get_config_file()["dependencies"]}
        assert visible == {"private"}

    def test_templates_are_constants(self, blocks: Any) -> None:
        for part in blocks.get_config_file()["components"]:
            if part["type"] == "html":
                assert re.fullmatch(r'<div class="fleet-view" data-view="\w+"></div>', part["props"]["html_template"])
        with pytest.raises(ValueError, match="expected a view's name"):
            place("${HOME}")

    def test_the_head_loads_only_files_of_ours(self) -> None:
        for rehearsal in (True, False):
            text = head(rehearsal)
            for address in re.findall(r'(?:src|href)="([^"]+)"', text):
                assert address.startswith("/ui-static/")
                assert (STATIC / address.removeprefix("/ui-static/")).is_file()
        assert 'data-rehearsal="true"' in head(True)
        assert 'data-rehearsal="false"' in head(False)


class TestScripts:
    @pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
    def test_a_script_makes_no_markup_and_asks_no_other_host(self, path: Path) -> None:
        text = path.read_text()
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert word not in text, word
        for address in re.findall(r"https?://[^\s\"'`)]+", text):
            assert address == "http://www.w3.org/2000/svg"

    @pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
    def test_imports_exist(self, path: Path) -> None:
        for names, module in re.findall(r'import \{([^}]+)\} from "\./([\w.-]+)";', path.read_text()):
            target = (STATIC / module).read_text()
            for name in (one.strip() for one in names.split(",")):
                assert re.search(rf"export (async )?(function|class|const) {name}\b", target), f"{module}: {name}"


class TestSqlDesk:
    def test_cells_are_bounded_texts(self) -> None:
        assert query.cell(3) == 3
        assert query.cell(None) is None
        assert query.cell({"a": 1}) == '{"a": 1}'
        assert len(query.cell("x" * 10_000)) == query.CELL + 1

    def test_a_table_and_its_sentence(self) -> None:
        result = QueryResult(columns=("n", "t"), types=("INTEGER", "VARCHAR"), rows=((1, "${HOME}"),), seconds=0.01)
        assert query.table(result)["headers"] == ["n", "t"]
        assert query.table(result)["data"] == [[1, "${HOME}"]]
        assert query.summary(result) == "1 row in 0.010 s"
        assert "cut at 1,000" in query.summary(result.model_copy(update={"truncated": True}))
