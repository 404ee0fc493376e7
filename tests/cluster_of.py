"""A Dask cluster of two worker processes on loopback, for a test to use, hurt and end.

    python cluster_of.py [WORKERS]

Prints the scheduler's address and the workers' process ids, and ends when its stdin does.
"""

import os
import sys

from dask.distributed import Client, LocalCluster

if __name__ == "__main__":
    workers = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    how = dict(threads_per_worker=1, host="127.0.0.1", dashboard_address=None)
    with LocalCluster(n_workers=workers, **how) as cluster, Client(cluster) as client:
        pids = client.run(os.getpid).values() if workers else ()
        print(cluster.scheduler_address, *pids, flush=True)
        sys.stdin.read()
