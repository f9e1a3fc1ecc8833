from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleet.errors import StartFailed
from fleet.gateway.auth import ensure_token, login_url, split_host
from tests.unit.gateway_world import World, gateway_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with gateway_world(tmp_path) as made:
        yield made


def test_the_token_file_is_made_once_with_mode_0600_and_closed_again_when_it_was_open(tmp_path: Path) -> None:
    path = tmp_path / "home" / "token"
    token = ensure_token(path)
    assert len(token) >= 32
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    assert ensure_token(path) == token
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_token_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    empty = tmp_path / "token"
    empty.write_text("\n")
    with pytest.raises(StartFailed, match=r"token: expected a token, but the file is empty"):
        ensure_token(empty)
    with pytest.raises(StartFailed, match="expected a token file that this user can read"):
        ensure_token(empty / "below-a-file")


@pytest.mark.parametrize(
    ("given", "name"),
    [("localhost:8800", "localhost"), ("[::1]:8800", "::1"), ("::1", "::1"), ("Example.COM", "example.com")],
)
def test_a_host_is_read_with_and_without_port(given: str, name: str) -> None:
    assert split_host(given) == name


@pytest.mark.parametrize(
    "path", ["/api/version", "/api/tasks", "/api/health", "/ui", "/ui/gradio_api/queue/join", "/docs", "/openapi.json"]
)
async def test_everything_asks_for_the_token(world: World, path: str) -> None:
    async with world.anonymous() as http:
        answer = await http.get(path)
        assert answer.status_code == 401
        assert answer.json()["error"] == "unauthorized"
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert (await http.post(path)).status_code == 401


@pytest.mark.parametrize("value", ["Bearer wrong", "Bearer ", "Basic abc", "{token}", "Bearer {token}x"])
async def test_a_wrong_token_is_refused(world: World, value: str) -> None:
    async with world.anonymous(Authorization=value.format(token=world.token)) as http:
        answer = await http.get("/api/version")
        assert answer.status_code == 401
        assert world.token not in answer.text


async def test_the_login_link_sets_a_cookie_that_opens_everything(world: World) -> None:
    async with world.anonymous() as http:
        answer = await http.get(login_url("", world.token))
        assert answer.status_code == 303
        assert answer.headers["location"] == "/ui"
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=strict" in cookie
        assert world.token not in answer.headers["set-cookie"]
        assert (await http.get("/api/version")).status_code == 200
        assert (await http.get("/docs")).status_code == 200


async def test_a_login_form_takes_the_token_and_goes_on_to_where_one_was(world: World) -> None:
    async with world.anonymous() as http:
        answer = await http.post("/login", data={"token": world.token, "next": "/ui?task=t-1"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/ui?task=t-1")


@pytest.mark.parametrize("target", ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:1"])
async def test_a_login_never_leads_to_another_host(world: World, target: str) -> None:
    async with world.anonymous() as http:
        answer = await http.get("/login", params={"token": world.token, "next": target})
        assert answer.headers["location"] == "/ui"


async def test_a_login_with_a_wrong_token_says_so_and_sets_no_cookie(world: World) -> None:
    async with world.anonymous() as http:
        answer = await http.get("/login?token=wrong")
        assert answer.status_code == 401
        assert "not this fleet" in answer.text
        assert "set-cookie" not in answer.headers


async def test_a_browser_without_login_gets_a_page_that_says_how(world: World) -> None:
    async with world.anonymous(Accept="text/html,*/*") as http:
        answer = await http.get("/ui?x=<script>")
        assert answer.status_code == 401
        assert answer.headers["content-type"].startswith("text/html")
        assert "fleet url" in answer.text and 'action="/login"' in answer.text
        assert answer.headers["referrer-policy"] == "same-origin" and "no-referrer" not in answer.text
        assert "<script>&" not in answer.text and "x=<script>" not in answer.text


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8800", "127.0.0.1.evil.example", "", "192.168.1.7:8800"]
)
async def test_a_foreign_host_is_refused_even_with_the_token(world: World, host: str) -> None:
    answer = await world.http.get("/api/version", headers={"Host": host})
    assert answer.status_code == 403
    assert answer.json()["error"] == "forbidden"
    assert "allowed_hosts" in answer.json()["message"]


@pytest.mark.parametrize("host", ["localhost:8800", "127.0.0.1:8800", "[::1]:8800", "localhost"])
async def test_loopback_names_are_answered(world: World, host: str) -> None:
    assert (await world.http.get("/api/version", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://localhost:3000", "http://127.0.0.1:3000", "http://127.0.0.1.evil.example"],
)
async def test_a_foreign_origin_is_refused_even_with_the_token(world: World, origin: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        answer = await world.http.request(method, "/api/tasks", headers={"Origin": origin})
        assert answer.status_code == 403, (method, answer.text)
        assert "access-control-allow-origin" not in answer.headers


async def test_our_own_origin_is_answered(world: World) -> None:
    answer = await world.http.get("/api/version", headers={"Origin": "http://127.0.0.1:8800"})
    assert answer.status_code == 200


async def test_a_listed_name_is_answered_also_when_its_proxy_drops_the_port(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, allowed_hosts=["fleet.example"]) as world:
        for origin in ("https://fleet.example", "https://fleet.example:8443"):
            headers = {"Host": "fleet.example", "Origin": origin}
            assert (await world.http.get("/api/version", headers=headers)).status_code == 200


async def test_a_fleet_that_listens_beyond_loopback_answers_to_addresses_but_not_to_names(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, host="0.0.0.0") as world:
        assert (await world.http.get("/api/version", headers={"Host": "10.0.0.7:8800"})).status_code == 200
        assert (await world.http.get("/api/version", headers={"Host": "evil.example"})).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": ""},
        {"authorization": "Bearer wrong"},
        {"origin": "http://evil.example"},
        {"host": "evil.example"},
        {"origin": "http://localhost:3000"},
    ],
)
async def test_a_socket_is_guarded_the_same(world: World, headers: dict[str, str]) -> None:
    for path in ("/api/ws", "/api/agents/qa_tester-1/attach", "/ui/anything"):
        event = await world.socket(path, **headers).event()
        assert event["type"] == "websocket.close", event
        assert event["code"] == 1008


async def test_the_root_leads_to_the_control_room(world: World) -> None:
    async with world.anonymous() as http:
        answer = await http.get("/")
        assert (answer.status_code, answer.headers["location"]) == (303, "/ui")


async def test_answers_carry_headers_that_keep_them_where_they_belong(world: World) -> None:
    answer = await world.http.get("/api/version")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "SAMEORIGIN"
    assert answer.headers["cache-control"] == "no-store"
