"""Ray's fake node provider, which starts raylets on this machine, mended for nodes that declare their memory."""

from __future__ import annotations

from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider

from fleet.contracts import HOST_LABEL


class FakeNodes(FakeMultiNodeProvider):
    """Starts each node with a name of its own.

    Ray 2.60's own passes `memory` as a custom resource, which its raylet refuses; the node then has what Ray finds.
    """

    def _create_node_with_resources_and_labels(
        self, node_config: Any, tags: Any, count: int, resources: dict[str, float], labels: dict[str, str]
    ) -> None:
        known = {name: amount for name, amount in resources.items() if name != "memory"}
        own = {**(labels or {}), HOST_LABEL: f"fake{self._next_node_id + 1}"}
        super()._create_node_with_resources_and_labels(node_config, tags, count, known, own)
