"""One local cluster of two nodes for all tests, and a model that says who is speaking."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled")
ray = pytest.importorskip("ray", reason="needs: pip install -e integrations/ray")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    nodes.add_node(num_cpus=2)
    ray.init(address=nodes.address)
    yield nodes
    ray.shutdown()
    nodes.shutdown()
