"""A Dask cluster that a command line or `joblib.parallel_config` names: the same results, and sentences
where it is not there, another's, or lost."""

import os
import pickle
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cluster_of
import joblib
import networks
import numpy as np
import pytest

import tvm_easyquant
from tvm_easyquant import cli, cluster, demo
from tvm_easyquant.errors import ClusterError
from tvm_easyquant.measure import networks as judged
from tvm_easyquant.samples import labelled
from tvm_easyquant.scales.calibrate import calibrate, start_table
from tvm_easyquant.scales.numerics import QuantConfig
from tvm_easyquant.scales.partition import plan
from tvm_easyquant.search.bits import layer_errors
from tvm_easyquant.search.driver import search

pytest.importorskip("distributed")
HERE = Path(__file__).resolve().parent
NET = demo.network_path()
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
QUICK = ["--search-images", "4", "--set", "grid=8", "--no-check"]


class Running:
    """A cluster of `cluster_of.py`, its scheduler's address and its workers' process ids."""

    def __init__(self, workers=2, env=ENV):
        command = [sys.executable, "-W", "ignore", str(HERE / "cluster_of.py"), str(workers)]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.process = subprocess.Popen(command, text=True, env=env, **pipes)
        self.address, *pids = self.process.stdout.readline().split()
        self.pids = [int(pid) for pid in pids]

    def end(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(60)


@pytest.fixture(scope="module")
def running():
    found = Running()
    yield found
    found.end()


@pytest.fixture
def images(tmp_path):
    found = tmp_path / "images.npz"
    np.savez(found, image=np.random.default_rng(0).random((4, 1, 28, 28), np.float32))
    return found


def quantize(images, output, *more):
    command = [sys.executable, "-W", "ignore", "-m", "tvm_easyquant.cli", "quantize", str(NET)]
    return [*command, "--calibration", str(images), "-o", str(output), *QUICK, *more]


def run(command, env=ENV):
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The table of one machine, of the samples of ``images``."""
    folder = tmp_path_factory.mktemp("here")
    np.savez(folder / "images.npz", image=np.random.default_rng(0).random((4, 1, 28, 28), np.float32))
    assert run(quantize(folder / "images.npz", folder / "here.json")).returncode == 0
    return (folder / "here.json").read_bytes()


@pytest.mark.ci
def test_a_table_of_a_cluster_is_the_same_file(running, here, images, tmp_path):
    done = run(quantize(images, tmp_path / "there.json", "--cluster", running.address))
    assert done.returncode == 0, done.stderr
    assert here == (tmp_path / "there.json").read_bytes()
    (note,) = [line for line in done.stderr.splitlines() if line.startswith("note: on the cluster")]
    assert note.count(" tasks") == 2  # each worker had some


def certificates(folder):
    """Dask's settings for a network whose members have certificates of one authority, made here."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl: no certificates to try TLS with")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    for name, signed in (
        ("ca", []),
        ("cert", ["-CA", "ca.pem", "-CAkey", "ca.key"]),
        ("other", []),  # whom the authority does not know
    ):
        files = ["-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}"]
        made = subprocess.run(
            ["openssl", "req", "-x509", *key, *files, *signed], cwd=folder, capture_output=True, text=True
        )
        if made.returncode:  # -CA came with OpenSSL 3
            pytest.skip(f"this openssl makes no certificate: {made.stderr.splitlines()[-1]}")
    return lambda name: {
        **ENV,
        "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "true",
        "DASK_DISTRIBUTED__COMM__TLS__CA_FILE": str(folder / "ca.pem"),
        **{
            f"DASK_DISTRIBUTED__COMM__TLS__{who}__{what}": str(folder / f"{name}.{end}")
            for who in ("CLIENT", "SCHEDULER", "WORKER")
            for what, end in (("CERT", "pem"), ("KEY", "key"))
        },
    }


@pytest.mark.ci
def test_a_table_of_a_cluster_by_tls_is_the_same_file(here, images, tmp_path):
    """All by Dask's settings in the environment; whoever has no certificate of theirs is not let in."""
    env = certificates(tmp_path)
    found = Running(env=env("cert"))
    try:
        assert found.address.startswith("tls://")
        command = quantize(images, tmp_path / "there.json", "--cluster", found.address)
        strange = run(command, env("other"))
        assert strange.returncode == 4 and not (tmp_path / "there.json").exists()
        (line,) = [line for line in strange.stderr.splitlines() if line.startswith("error:")]
        assert f"no Dask scheduler at {found.address}: " in line and "Traceback" not in strange.stderr
        plain = run([each.replace("tls://", "tcp://") for each in command])
        assert plain.returncode == 4 and "no Dask scheduler at tcp://" in plain.stderr
        done = run(command, env("cert"))
        assert done.returncode == 0, done.stderr
        assert here == (tmp_path / "there.json").read_bytes()
    finally:
        found.end()


def work():
    graph, images = networks.residual(3)
    plan_, config = plan(graph), QuantConfig(method="minmax")
    table = start_table(graph, plan_, calibrate(graph, plan_, images[:4], config), config)
    return graph, plan_, table, images


@pytest.mark.ci
def test_accuracy_and_sensitivity_of_a_cluster_are_those_of_one_machine(running):
    """Each sample is sent once: the second network sees those that the first one's tasks left there."""
    graph, plan_, table, images = work()
    data = labelled.load([({"image": x}, n % 3) for n, x in enumerate(images * 10)])
    samples = [{"image": x} for x in images[:3]]

    def found(progress=None):
        both, metrics = judged.in_numpy(graph, table), judged.metrics_of(None)
        return (
            judged.judge((data, metrics), both, graph, warn=list, progress=progress),
            layer_errors(graph, plan_, {7: table}, samples),
        )

    here = found()
    sent, told = [], []
    with cluster.connected(running.address) as there:
        assert list(there.done.values()) == [0, 0]
        scatter = there.client.scatter

        def counted(values, **options):
            sent.extend(values)
            return scatter(values, **options)

        there.client.scatter = counted
        assert found(lambda done, total, text: told.append(text)) == here
        assert sum(there.done.values()) > 0
    assert told and all("tasks: 127.0.0.1:" in text for text in told if text[:5] in ("float", "integ"))
    feeds = [each for each in sent if isinstance(each, list)]
    assert sum(map(len, feeds)) == len(data)


def sent_by(there, found, samples):
    """(the table that a search on the cluster finds, the values that it sends)."""
    graph, plan_, config = found
    scatter, sent = there.client.scatter, []

    def counted(values, **options):
        sent.extend(values)
        return scatter(values, **options)

    there.client.scatter = counted
    try:
        calibrated = calibrate(graph, plan_, samples, config)
        return search(graph, plan_, calibrated, config).to_json(), sent
    finally:
        there.client.scatter = scatter


@pytest.mark.ci
def test_a_search_sends_each_image_once_and_no_tensor_of_a_layer(running):
    """Story: of 463 MB that the search of SqueezeNet sent, 334 were its layers' inputs and outputs. With
    twice the images only these are more."""
    graph, plan_, _, images = work()
    config = QuantConfig(grid=8, search_images=16)
    found, samples = (graph, plan_, config), [images[n % 6] + np.float32(n) for n in range(16)]
    here = search(graph, plan_, calibrate(graph, plan_, samples, config), config).to_json()
    with cluster.connected(running.address) as there:
        _, few = sent_by(there, found, samples[:8])
        table, sent = sent_by(there, found, samples)
    assert table == here
    shares = [each for each in sent if isinstance(each, list) and isinstance(each[0], dict)]
    once = sorted(x.tobytes() for x in samples)
    assert sorted(x["image"].tobytes() for share in shares for x in share) == once
    few, many = (sum(len(pickle.dumps(each)) for each in values) for values in (few, sent))
    assert many - few < 1.1 * 8 * samples[0].nbytes


@pytest.mark.ci
@pytest.mark.parametrize("settings", [{}, dict(method="easyquant"), dict(bits=8, objective="hessian")])
def test_batches_and_a_part_of_the_images_are_cut_as_on_one_machine(running, settings):
    """Two images a sample, and a site judged on the first samples only, whose shares are no walk's own."""
    graph, images = networks.joined(3, batch=2)
    plan_, config = plan(graph), QuantConfig(grid=8, search_images=13, **settings)
    samples = [images[n % 6] + np.float32(n) for n in range(13)]
    calibrated = calibrate(graph, plan_, samples, config)
    here = search(graph, plan_, calibrated, config).to_json()
    with cluster.connected(running.address) as there:
        assert sent_by(there, (graph, plan_, config), samples)[0] == here


@pytest.mark.ci
def test_what_workers_make_of_what_they_hold_is_an_argument(running):
    """Kept there, or made by each task; an error of it is the error itself."""
    with cluster.connected(running.address) as there:
        held = cluster.Once((3, 1, 2))
        least = cluster.Made(min, cluster.Made(sorted, held, kept=False))
        assert there.run(max, [(least, 0), (7, least)]) == [1, 7]
        assert there.run(sum, [(cluster.Made(sorted, held, kept=False),)]) == [6]
        with pytest.raises(ValueError, match="invalid literal"):
            there.run(abs, [(cluster.Made(int, "x"),)])


@pytest.mark.ci
def test_a_search_that_was_interrupted_here_goes_on_on_a_cluster(running, tmp_path):
    """What was decided before, the workers hear of with their first task; images are walked from the start."""
    graph, plan_, _, images = work()
    config = QuantConfig(grid=8, search_images=4)
    found = graph, plan_, calibrate(graph, plan_, images[:4], config), config

    def interrupt(done, total, text):
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(*found, checkpoint=tmp_path / "state", progress=interrupt)
    told = []
    with cluster.connected(running.address):
        table = search(*found, checkpoint=tmp_path / "state", progress=lambda *each: told.append(each[2]))
    assert any(text.startswith("resumed at") for text in told)
    assert table.to_json() == search(*found).to_json()


@pytest.mark.ci
@pytest.mark.skipif(not platform.libc_ver()[0], reason="the C library is not GNU's")
def test_workers_keep_the_memory_of_arrays_that_come_and_go(running):
    """Dask's have the C library give it back at once: of 20 arrays of 4 MiB each page was a fault, and a
    network ran three times as long as in one process."""
    with cluster.connected(running.address) as there:
        assert there.run(cluster_of.faults, [()])[0] < 1000


@pytest.mark.ci
def test_a_worker_that_is_lost_has_its_share_done_again(images):
    """What it held is sent again, what it computed is computed again; a task of its own is not lost."""
    found = Running()
    try:
        with cluster.connected(found.address) as there:
            shared = [cluster.Once(np.arange(4) + n) for n in range(8)]
            assert there.run(np.sum, [(each,) for each in shared]) == [6 + 4 * n for n in range(8)]
            os.kill(found.pids[0], signal.SIGKILL)
            assert there.run(np.max, [(each,) for each in shared]) == [3 + n for n in range(8)]
            assert there.again > 0
            assert "as a worker was lost" in str(there)
    finally:
        found.end()


@pytest.mark.ci
def test_a_scheduler_that_is_lost_leaves_the_state(here, images, tmp_path):
    """One line, exit code 4, and --resume goes on without a cluster, to the same bytes."""
    table, state = tmp_path / "table.json", tmp_path / "table.json.search"
    found = Running()
    command = quantize(images, table, "--resume", "--cluster", found.address)
    try:
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=ENV
        )
        until = time.monotonic() + 120
        while not (state.exists() and state.read_text().count("\n") > 2) and time.monotonic() < until:
            time.sleep(0.02)
        found.process.kill()
        error = process.communicate(timeout=120)[1]
    finally:
        found.end()
    assert process.returncode == 4, error
    (line,) = [line for line in error.splitlines() if line.startswith("error:")]
    assert f"the scheduler at {found.address} is lost" in line and "--resume" in line
    assert "Traceback" not in error
    assert state.exists() and not table.exists()
    assert run(quantize(images, table, "--resume")).returncode == 0
    assert table.read_bytes() == here


@pytest.mark.ci
def test_another_release_is_told_before_the_work(running, monkeypatch):
    monkeypatch.setattr(tvm_easyquant, "__version__", "9.9")
    with pytest.raises(ClusterError, match="here it is 9.9; install the same release everywhere"):
        with cluster.connected(running.address):
            pass


@pytest.mark.ci
def test_a_worker_of_another_release_that_joins_later_is_told_too(running):
    with cluster.connected(running.address) as there:
        task = there.client.submit(cluster._call, "9.9", b"")
        with pytest.raises(ClusterError, match="here it is 9.9"):
            task.result()


@pytest.mark.ci
def test_a_cluster_without_workers_is_a_sentence(monkeypatch):
    monkeypatch.setattr(cluster, "WORKERS", 0.5)
    found = Running(workers=0)
    try:
        with pytest.raises(ClusterError, match="has no workers"):
            with cluster.connected(found.address):
                pass
    finally:
        found.end()


@pytest.mark.parametrize("address", ["127.0.0.1:8786", "http://host:80", "tcp://host"])
def test_an_address_that_is_none_is_a_sentence(address):
    with pytest.raises(ClusterError, match="give tcp://HOST:PORT or tls://HOST:PORT"):
        with cluster.connected(address):
            pass


def test_an_address_where_nobody_answers_is_a_sentence(monkeypatch):
    monkeypatch.setattr(cluster, "ANSWER", 0.5)
    with pytest.raises(ClusterError, match="no Dask scheduler at tcp://127.0.0.1:1: nobody answers there"):
        with cluster.connected("tcp://127.0.0.1:1"):
            pass


def test_tls_without_certificates_is_a_sentence(monkeypatch):
    monkeypatch.setattr(cluster, "ANSWER", 0.5)
    with pytest.raises(ClusterError, match="no Dask scheduler at tls://127.0.0.1:1: .*TLS"):
        with cluster.connected("tls://127.0.0.1:1"):
            pass


def test_without_dask_the_extra_is_named(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "distributed", None)
    command = quantize(images, tmp_path / "t.json", "--cluster", "tcp://127.0.0.1:1")[5:]
    assert cli.root.run(command) == 5
    assert "pip install 'tvm_easyquant[cluster]'" in capsys.readouterr().err


def test_what_tasks_share_is_the_value_itself_without_a_cluster():
    from tvm_easyquant.search.workers import Workers

    assert Workers(2).run(sum, [(cluster.Once([1, 2]),), ([3],)]) == [3, 3]
    with joblib.parallel_config(backend="loky", n_jobs=2):
        assert Workers().run(sum, [(cluster.Once([1, 2]),), ([3],)]) == [3, 3]


def test_progress_says_which_worker_has_done_how_much():
    """It said how many had done something."""
    from types import SimpleNamespace

    there = cluster.Cluster(SimpleNamespace(scheduler=SimpleNamespace(address="tcp://scheduler:1")))
    assert there.note == "" and str(there) == "no tasks"
    there.done = {"tcp://a:1": 0, "tls://b:2": 0}
    assert str(there) == "no tasks"
    for address in ("tcp://a:1", "tls://b:2", "tcp://a:1"):
        there.did(address)
    assert there.note == ", tasks: a:1 2, b:2 1"
    assert there.spread().note == there.note
    there.done |= {f"tcp://c:{i}": 7 - i for i in range(3)}
    assert there.note == ", 5 workers: 1 to 7 tasks each"


def test_a_task_that_ends_while_its_time_is_up_has_ended(monkeypatch):
    """On a busy machine the wait was over just before the result came, and the search ended in a traceback."""
    from types import SimpleNamespace

    from distributed import TimeoutError as Late

    answers = iter([Late(), ("tcp://worker:1", 7)])

    def result(timeout):
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found

    there = cluster.Cluster(SimpleNamespace(scheduler=SimpleNamespace(address="tcp://scheduler:1")))
    task = cluster._Task(there, sum, ([3, 4],))
    task.future = SimpleNamespace(result=result, status="finished")
    assert task.result() == 7 and there.done == {"tcp://worker:1": 1}
