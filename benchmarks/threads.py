"""One program for many threads: throughput against processes, memory of its contexts, and a soak.

    python benchmarks/threads.py --data DIR [--json benchmarks/results/threads.json] [--nets NAME ...]

For each network (the demo's, and those of the folder that --nets names), quantized by MinMax and built for
this CPU, with one thread for each call: two threads that share a `Program`, and two processes with one
each, run in turn for ``SECONDS``, ``ROUNDS`` times. ``ratio`` is the median of the rounds' ratios of calls,
``speedup`` that of two threads to one.

``memory_kib`` is what a process needs with 1, 2 and 4 contexts, each kept by a thread of its own that ran
it (anonymous memory, the median of three processes); ``context_kib`` is what one more of 4 costs. The soak,
on the first network: 4 processes of 8 threads each, ``SOAK`` calls in all; each output is compared with
that of a call alone. Ends with 1 if one is wrong or a ratio is below ``GOAL``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import machine
import numpy as np

ROUNDS, SECONDS, SOAK, GOAL = 41, 0.3, 100_000, 0.97
NETS = ("imagenet_squeezenet1.1",)


def anonymous_kib() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))


def at_once(count: int, work) -> list:
    """work(number) of so many threads at once."""
    found: list = [None] * count

    def call(number):
        found[number] = work(number)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def serve(network, samples, count: int) -> None:
    """Calls in so many threads, from and to the times of a line of standard input; prints how many."""
    from tvm_easyquant.deploy import Program

    answer_rates(Program(network, contexts=count, threads=1), samples, count)


def call(network, samples, count: int) -> None:
    """As `serve`, of one thread whose calls run on so many."""
    from tvm_easyquant.deploy import Program

    answer_rates(Program(network, contexts=1, threads=count), samples, 1)


def answer_rates(program, samples, count: int) -> None:
    feeds = [samples[i : i + 1] for i in range(len(samples))]
    program(feeds[0])
    for line in sys.stdin:
        start, end = map(float, line.split())

        def calls(number, start=start, end=end):
            time.sleep(max(start - time.monotonic(), 0))
            done = 0
            while time.monotonic() < end:
                program(feeds[(done + number) % len(feeds)])
                done += 1
            return done

        print(sum(at_once(count, calls)), flush=True)


def memory(network, samples, count: int) -> None:
    """Prints the memory of so many contexts."""
    from tvm_easyquant.deploy import Program

    program, done = Program(network, contexts=4, threads=1), threading.Barrier(count + 1)

    def keep():
        program.set_inputs(samples[:1])
        program.run()
        program.outputs()
        done.wait()
        done.wait()

    for _ in range(count):
        threading.Thread(target=keep).start()
    done.wait()
    print(anonymous_kib())
    done.wait()


def soak(network, samples, count: int) -> None:
    """So many calls of eight threads; prints how many, how many were wrong, and what memory grew by."""
    from tvm_easyquant.deploy import Program

    with Program(network) as program:
        feeds = [samples[i : i + 1] for i in range(len(samples))]
        want = [program(feed) for feed in feeds]
        kib = []

        def calls(number):
            wrong = 0
            for call in range(count // 8):
                i = (7 * number + call) % len(feeds)
                found = program(feeds[i])
                wrong += not all(map(np.array_equal, found, want[i]))
                if number == 0 and call in (count // 32, count // 8 - 1):
                    kib.append(anonymous_kib())
            return wrong

        wrong = sum(at_once(8, calls))
        print(json.dumps([count // 8 * 8, wrong, kib[-1] - kib[0]]))


def started(how: str, network, samples, count: int, **options) -> subprocess.Popen:
    command = [sys.executable, __file__, "--as", how, str(network), str(samples), str(count)]
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", **options.pop("env", {})}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)


def answer(process) -> str:
    line = process.stdout.readline()
    assert line, "a process ended"
    return line


def rate(group, seconds: float) -> float:
    """Calls a second of processes that run at once."""
    start = time.monotonic() + 0.05
    for process in group:
        process.stdin.write(f"{start} {start + seconds}\n")
        process.stdin.flush()
    return sum(int(answer(process)) for process in group) / seconds


def throughput(network, samples) -> dict:
    """Calls a second of one thread, two threads and two processes, in turn."""
    env = {"TVM_NUM_THREADS": "1"}
    servers = {
        "one": [started("serve", network, samples, 1, env=env)],
        "threads": [started("serve", network, samples, 2, env=env)],
        "processes": [started("serve", network, samples, 1, env=env) for _ in range(2)],
    }
    found: dict[str, list[float]] = {name: [] for name in servers}
    for i in range(ROUNDS + 1):
        for name in servers if i % 2 else reversed(servers):
            calls = rate(servers[name], SECONDS)
            if i:  # the first round warms up
                found[name].append(calls)
    for process in (process for group in servers.values() for process in group):
        process.communicate()
    ratios = sorted(a / b for a, b in zip(found["threads"], found["processes"], strict=True))
    speedups = [a / b for a, b in zip(found["threads"], found["one"], strict=True)]
    return {
        "calls_per_second": {name: round(statistics.median(calls), 1) for name, calls in found.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratio_quartiles": [round(float(q), 3) for q in np.quantile(ratios, (0.25, 0.75))],
        "speedup": round(statistics.median(speedups), 3),
    }  # fmt: skip


def memories(network, samples) -> dict:
    """KiB of 1, 2 and 4 contexts."""
    found = {}
    for count in (1, 2, 4):
        runs = []
        for _ in range(3):
            process = started("memory", network, samples, count)
            runs.append(int(answer(process)))
            process.communicate()
        found[count] = statistics.median(runs)
    return {"memory_kib": found, "context_kib": round((found[4] - found[1]) / 3)}


def soaked(network, samples) -> dict:
    processes = [started("soak", network, samples, SOAK // 4) for _ in range(4)]
    rows = [json.loads(answer(process)) for process in processes]
    assert all(process.wait() == 0 for process in processes)
    calls, wrong, grown = (list(column) for column in zip(*rows, strict=True))
    return {"processes": 4, "threads": 8, "calls": sum(calls), "wrong": sum(wrong), "grown_kib": max(grown)}


def networks(data: Path | None, names, folder: Path):
    """(name, archive, samples, weights' bytes) of each network."""
    import tvm_easyquant as eq
    from tvm_easyquant import demo
    from tvm_easyquant.network.node import model_shape

    models = [("demo", demo.network_path())]
    models += [(name, data / f"{name}.onnx") for name in names if data is not None]
    for name, model in models:
        graph = eq.load(model)
        shape = model_shape(graph[graph.inputs[0]])
        samples = np.random.default_rng(0).standard_normal((16, *shape[1:])).astype(np.float32)
        built = eq.quantize(graph, samples, method="minmax").build()
        archive, array = folder / f"{name}.tar", folder / f"{name}.npy"
        built.export(archive)
        np.save(array, samples)
        yield name, archive, array, built.size


def main():
    if sys.argv[1:2] == ["--as"]:
        how, network, samples, count = sys.argv[2:]
        {"serve": serve, "call": call, "memory": memory, "soak": soak}[how](
            network, np.load(samples), int(count)
        )
        return 0
    from tvm_easyquant.files import write_text

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of networks")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--nets", nargs="*", metavar="NAME", default=NETS)
    args = parser.parse_args()
    rows, worn = [], None
    with tempfile.TemporaryDirectory() as scratch:
        for name, network, samples, size in networks(args.data, args.nets, Path(scratch)):
            if worn is None:
                worn = {"net": name, **soaked(network, samples)}
                print(f"soak: {worn}", flush=True)
            row = {"net": name, "code_and_weights_kib": size // 1024}
            rows.append({**row, **throughput(network, samples), **memories(network, samples)})
            print(rows[-1], flush=True)
    if args.json:
        facts = {
            "machine": machine.describe(),
            "rounds": ROUNDS,
            "seconds": SECONDS,
            "soak": worn,
            "rows": rows,
        }
        write_text(args.json, json.dumps(facts, indent=1) + "\n")
    return int(worn["wrong"] > 0 or any(row["ratio"] < GOAL for row in rows))


if __name__ == "__main__":
    sys.exit(main())
