"""The same bytes of table from one process, from two of joblib's, and from a cluster that loses a worker."""

import pytest
from python_process import TESTS, run


def digest(backend):
    done = run(TESTS / "search_on_cluster.py", backend, cwd=TESTS)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split()[-1]


@pytest.fixture(scope="module")
def of_threads():
    found = digest("threads")
    assert len(found) == 64
    return found


def test_two_processes_give_the_same_bytes(of_threads):
    assert digest("loky") == of_threads


def test_a_cluster_of_two_that_loses_a_worker_gives_the_same_bytes(of_threads):
    pytest.importorskip("distributed")
    assert digest("dask") == of_threads
