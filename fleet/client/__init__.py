"""What users import: a fleet over HTTP, sync and async. Stage 1; imports only models and errors."""

from fleet.client._base import Target, find_target
from fleet.client.aio import AsyncFleet, AsyncTaskHandle
from fleet.client.rows import Rows
from fleet.client.sync import Fleet, TaskHandle, as_completed

__all__ = ["AsyncFleet", "AsyncTaskHandle", "Fleet", "Rows", "Target", "TaskHandle", "as_completed", "find_target"]
