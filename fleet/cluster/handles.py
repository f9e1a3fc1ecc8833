"""Proxies of the parts: their coroutines, with Ray's exceptions turned into ours; all remote calls are made here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import ray
from ray import exceptions as ray_errors

from fleet.contracts import AGENT_PREFIX, NAMESPACE, ROUTER_DEPLOYMENT, SERVE_APP, STORE_NAME
from fleet.errors import AgentGone, FleetError, Unavailable

CALL_TIMEOUT_S = 60.0
"""A part that has not answered a short call by then is taken as unavailable."""


class _Remote:
    """Turns attribute access into remote calls: `await proxy.method(...)`."""

    part = ""
    endless: frozenset[str] = frozenset()
    """Methods that may take as long as they like."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            try:
                reply = self._send(name, args, kwargs)
                if name in self.endless:
                    return await reply
                # Not `wait_for`: before Python 3.12 it swallows a cancellation that meets the answer.
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    return await reply
            except ray_errors.RayTaskError as error:
                # Before FleetError: Ray raises a class of its own that is both, and no table knows it.
                cause = getattr(error, "cause", None)
                if isinstance(cause, FleetError):
                    raise cause from None
                raise
            except FleetError:
                raise
            except KeyError as error:
                # So Serve's handles say that a deployment is not there, or not yet.
                if "does not exist" not in str(error):
                    raise
                self._forget()
                raise self._away(f"{error} in Ray Serve", error) from error
            except TimeoutError as error:
                raise self._away(f"no answer in {CALL_TIMEOUT_S:.0f} s", error) from error
            except (ray_errors.RayActorError, ray_errors.GetTimeoutError, ray_errors.RaySystemError) as error:
                self._forget()
                raise self._away(str(error).splitlines()[0] if str(error) else type(error).__name__, error) from error

        return call

    def _send(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        raise NotImplementedError

    def _forget(self) -> None:
        """Drop what is cached about where the part is."""

    def _away(self, why: str, error: BaseException) -> FleetError:
        return Unavailable(
            f"The {self.part} does not answer now ({why}). It is restarted by itself: try again.",
            part=self.part,
            retry_after_s=1.0,
        )


class StoreHandle(_Remote):
    """`contracts.Store` over its detached actor, looked up again after it was restarted."""

    part = "store"
    endless = frozenset({"backup", "export", "prune", "sql", "sql_arrow", "follow", "search"})

    def __init__(self) -> None:
        self._actor: Any = None

    def _send(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._actor is None:
            try:
                self._actor = ray.get_actor(STORE_NAME, namespace=NAMESPACE)
            except ValueError as error:
                raise self._away("its actor does not exist", error) from None
        return getattr(self._actor, name).remote(*args, **kwargs)

    def _forget(self) -> None:
        self._actor = None


class AgentHandle(_Remote):
    """`contracts.Agent` over its detached actor."""

    part = "agent"
    endless = frozenset({"run", "wait", "stop"})

    def __init__(self, agent_id: str, actor: Any = None) -> None:
        self.agent_id = agent_id
        self._actor = actor

    def _send(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._actor is None:
            try:
                self._actor = ray.get_actor(AGENT_PREFIX + self.agent_id, namespace=NAMESPACE)
            except ValueError as error:
                raise self._away("its actor does not exist", error) from None
        return getattr(self._actor, name).remote(*args, **kwargs)

    def _forget(self) -> None:
        self._actor = None

    def _away(self, why: str, error: BaseException) -> FleetError:
        gone = isinstance(error, ValueError | ray_errors.ActorDiedError)
        cls = AgentGone if gone else Unavailable
        return cls(f"Agent {self.agent_id} does not answer ({why}).", agent=self.agent_id, state="lost")


class RouterHandle(_Remote):
    """`contracts.Router` over its Serve deployment."""

    part = "router"

    def __init__(self) -> None:
        self._handle: Any = None

    def _send(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        from ray import serve
        from ray.serve.exceptions import RayServeException

        try:
            if self._handle is None:
                self._handle = serve.get_deployment_handle(ROUTER_DEPLOYMENT, _application())
            return getattr(self._handle, name).remote(*args, **kwargs)
        except RayServeException as error:
            self._handle = None
            raise self._away(str(error).splitlines()[0], error) from error

    def _forget(self) -> None:
        self._handle = None


def _application() -> str:
    """Return the Serve application that has the router: ours, or the one that `serve run` named in its own way."""
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        return str(serve.get_replica_context().app_name)
    except RayServeException:
        # An agent, which is no replica.
        pass
    applications = serve.status().applications
    return next((name for name, app in applications.items() if ROUTER_DEPLOYMENT in app.deployments), SERVE_APP)
