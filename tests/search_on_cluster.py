"""Search one small network on the backend that is named, and print the digest of the table's text.

    python search_on_cluster.py threads|loky|dask

On dask: a LocalCluster of two workers on loopback, one of which is killed (SIGKILL) in the middle.
"""

import hashlib
import os
import signal
import sys

import joblib
import networks

from tvm_easyquant.scales.calibrate import calibrate
from tvm_easyquant.scales.numerics import QuantConfig
from tvm_easyquant.scales.partition import plan
from tvm_easyquant.search.driver import search


def text(progress=None, **settings):
    graph, images = networks.residual(3)
    config, plan_ = QuantConfig(grid=8, search_images=4, **settings), plan(graph)
    found = calibrate(graph, plan_, images[:4], config)
    return search(graph, plan_, found, config, progress=progress).to_json()


def digest(progress=None):
    texts = [text(progress, method="easyquant_layerwise"), text(None, method="easyquant")]
    return hashlib.sha256("".join(texts).encode()).hexdigest()


def on_dask():
    from dask.distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        pids = client.run(os.getpid)
        assert len(pids) == 2
        killed = []

        def kill(done, total, what):
            if done == total // 2 and not killed:
                killed.append(next(iter(pids.values())))
                os.kill(killed[0], signal.SIGKILL)

        with joblib.parallel_config(backend="dask"):
            found = digest(kill)
        assert killed and killed[0] not in client.run(os.getpid).values()
        return found


if __name__ == "__main__":
    backend = sys.argv[1]
    if backend == "dask":
        print(on_dask())
    elif backend == "loky":
        with joblib.parallel_config(backend="loky", n_jobs=2):
            print(digest())
    else:
        print(digest())
