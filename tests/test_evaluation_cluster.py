"""The Ray engine: two nodes on this machine, one of them killed in mid-run."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evaluations import evaluation, planned, tree
from ras_dit.errors import RASError
from ras_dit.evaluation.cluster import RayCluster
from ras_dit.evaluation.stages import generate_pictures, score_pictures

PARTS = ("images", "units", "scores", "manifest.json")


@contextlib.contextmanager
def two_nodes() -> Iterator[Any]:
    """A cluster of two nodes with room for one worker each; the second can be killed."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "num_gpus": 0, "include_dashboard": False},
    )
    try:
        second = cluster.add_node(num_cpus=1, num_gpus=0)
        yield cluster, second
    finally:
        cluster.shutdown()


# Ray leaves sockets and processes to the end of the interpreter.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_cluster_that_loses_a_node_gives_the_same_bytes(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings.simplefilter("ignore")
    # On a busy machine a node needs longer to start than Ray waits by itself.
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "240")
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    # A dead node is noticed in five seconds and not in half a minute.
    monkeypatch.setenv("RAY_health_check_initial_delay_ms", "0")
    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "10")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    manifest, settings = planned(tmp_path, evaluation(model_folder))
    generate_pictures(tmp_path / "local", manifest, settings)
    score_pictures(tmp_path / "local")
    lost: list[int] = []
    with two_nodes() as (cluster, second):
        crew = RayCluster(cluster.address)

        def kill_second(done: int, _: int) -> None:
            if done >= 3 and not lost:
                lost.append(done)
                cluster.remove_node(second, allow_graceful=False)

        progress = generate_pictures(
            tmp_path / "ray", manifest, settings, crew=crew, on_unit=kill_second
        )
        assert lost
        assert progress.whole
        score_pictures(tmp_path / "ray", crew=crew)
    assert tree(tmp_path / "ray", *PARTS) == tree(tmp_path / "local", *PARTS)


def test_a_cluster_that_is_not_there_is_an_error(model_folder: Path, tmp_path: Path) -> None:
    manifest, settings = planned(tmp_path, evaluation(model_folder))
    with pytest.raises(RASError, match=r"the Ray cluster 'nowhere' cannot be joined"):
        generate_pictures(tmp_path / "out", manifest, settings, crew=RayCluster("nowhere"))
