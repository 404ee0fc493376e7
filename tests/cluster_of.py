"""A Dask cluster of two worker processes on loopback, for a test to use, hurt and end.

    python cluster_of.py [WORKERS]

Prints the scheduler's address and the workers' process ids, and ends when its stdin does.
"""

import os
import sys

import numpy as np


def faults() -> int:
    """Page faults of arrays that come and go."""
    import resource

    for _ in range(2):  # the first time memory is new
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            np.ones(2**20, np.float32)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


if __name__ == "__main__":
    from dask.distributed import Client, LocalCluster

    workers = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    how = dict(threads_per_worker=1, host="127.0.0.1", dashboard_address=None)
    with LocalCluster(n_workers=workers, **how) as cluster, Client(cluster) as client:
        pids = client.run(os.getpid).values() if workers else ()
        print(cluster.scheduler_address, *pids, flush=True)
        sys.stdin.read()
