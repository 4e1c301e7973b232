"""What algorithms and stages there are is told once, and everything that needs it asks."""

import ast
from pathlib import Path

import numpy as np
import pytest
from clusters import cluster_of

import isthmus
from isthmus.benchmarking.options import CollectivesOptions
from isthmus.collectives.allreduce import Allreduce
from isthmus.jobs.settings import RunSettings
from isthmus.registry import ALGORITHMS, ALLREDUCE_STAGES, STAGES, algorithm_named
from isthmus.timing.time_model import AllreduceTime
from isthmus.toml_files import check_table

SOURCES = sorted((Path(__file__).parents[1] / "src/isthmus").rglob("*.py"))


@pytest.mark.ranks(3)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_sums_and_is_predicted(comm, name):
    cluster = isthmus.Cluster(cluster_of(2, 1))
    with isthmus.split_tiers(comm, cluster) as tiers:
        mean = Allreduce(tiers, 5, name)(np.full(5, comm.rank, "f4"))
    assert mean.tolist() == [1.0] * 5
    assert isthmus.predict_allreduce(cluster, 5, algorithm=name).seconds > 0


@pytest.mark.parametrize("name", ALGORITHMS)
def test_who_takes_a_compressor_is_asked_of_the_registry(name):
    for ask in (
        lambda: isthmus.predict_allreduce(
            isthmus.Cluster(cluster_of(1, 1)), 0, algorithm=name, compressor=isthmus.Int8()
        ),
        lambda: check_table(RunSettings, settings(name, compressor="int8"), "RUN.toml", ValueError),
    ):
        if ALGORITHMS[name].compresses:
            ask()
        else:
            with pytest.raises(ValueError, match=f'algorithm "{name}" sends exact float32'):
                ask()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_cannot_be_paced_is_refused_by_runs_and_benchmarks_alike(name):
    asks = (
        lambda: CollectivesOptions(algorithms=(name,), compressors=("none",), links="paced"),
        lambda: check_table(RunSettings, settings(name, links="paced"), "RUN.toml", ValueError),
    )
    for ask in asks:
        if ALGORITHMS[name].unpaced is None:
            ask()
        else:
            with pytest.raises(ValueError, match=f'"{name}" cannot be paced: .*"ring" or "hier'):
                ask()


def test_benchmarks_over_paced_links_leave_out_what_cannot_be_paced():
    measured = {name for name, _ in CollectivesOptions(links="paced").combinations}
    assert measured == {name for name, row in ALGORITHMS.items() if not row.unpaced}
    assert {name for name, _ in CollectivesOptions().combinations} == set(ALGORITHMS)


def test_an_unknown_algorithm_is_told_which_there_are():
    with pytest.raises(
        ValueError, match="one of mpi, ring, tree, doubling, recursive, hierarchical, not 'star'"
    ):
        algorithm_named("star")


def test_predictions_have_a_term_for_each_stage_of_an_allreduce():
    assert tuple(AllreduceTime().terms) == ALLREDUCE_STAGES


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_other_file_lists_algorithms_or_stages(path):
    """Four of them in a row are a list; formulas and classes by name are what a name stands for."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Tuple | ast.List | ast.Set) and path.name != "registry.py":
            words = {part.value for part in node.elts if isinstance(part, ast.Constant)}
            for known in (ALGORITHMS, STAGES):
                assert len(words & {*known}) < 4 or words - {*known}, f"{path}:{node.lineno}: {words}"


def settings(algorithm, links="real", **allreduce):
    """Return the table of a run's settings."""
    return {
        "cluster": {"file": "cluster.toml", "links": links},
        "data": {"train": "train", "test": "test"},
        "model": {"kind": "perceptron", "inputs": 4, "hidden": [3], "classes": 2},
        "allreduce": {"algorithm": algorithm} | allreduce,
    }
