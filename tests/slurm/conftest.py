"""A cluster for the tests of this folder, and projects whose measurements run on it."""

from pathlib import Path

import pytest

from slurm import cluster as clusters
from workflow.conftest import ROOT, Project

PATIENCE_S = 240
"""Longest time for a run of the workflow: the plugin can wait for ever."""

QUICK = ("--slurm-init-seconds-before-status-checks", "1", "--max-status-checks-per-second", "10")
"""Instead of the profile's settings for jobs that take minutes."""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """A running Slurm that every command of this process finds."""
    if reason := clusters.missing():
        pytest.skip(reason)
    with clusters.running(tmp_path_factory.mktemp("slurm")) as cluster, pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        yield cluster


@pytest.fixture(scope="session")
def new_cluster_project(cluster, new_fake_worker, tmp_path_factory):
    """Makes a project in a folder of its own whose measurements run on the cluster."""

    def make(name: str, **fields) -> Project:
        folder: Path = tmp_path_factory.mktemp(name)
        executor = ("--profile", ROOT / "profiles" / "slurm", *QUICK)
        worker = new_fake_worker(folder / "journal.jsonl")
        return Project(folder, worker, executor=executor, patience_s=PATIENCE_S, **fields)

    return make
