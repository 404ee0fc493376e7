"""A compiled network runs without the TVM package, and gives what TVM's executor gives."""

import ctypes
import json
import multiprocessing
import os
import re
import sys
import tarfile
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")
import networks
from python_process import python, tvmc

import tvm_easyquant as eq
from tvm_easyquant import deploy
from tvm_easyquant.errors import GraphError
from tvm_easyquant.host import installed
from tvm_easyquant.runtime import dlpack

ROOT = Path(__file__).resolve().parent.parent
#: library on disk -> what it was written of
BUILT = {}


def executor(path, **options):
    """The host's own executor of a library: on Relay of what TVM loads, too."""
    import tvm

    if installed().name == "relay":
        return eq.Executor(tvm.runtime.load_module(str(path)), **options)
    return eq.Executor(BUILT[path], **options)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """(net.so, an input, the outputs)."""
    graph, images = networks.chain(channels=16)
    library = eq.quantize(graph, images, method="minmax").build()
    path = tmp_path_factory.mktemp("deploy") / "net.so"
    library.export_library(str(path))
    BUILT[path] = library
    return path, images[0], eq.Executor(library)({"image": images[0]})


def test_it_gives_the_executors_outputs(compiled, monkeypatch):
    path, image, want = compiled
    monkeypatch.chdir(path.parent)
    program = deploy.Program(path.name)
    assert program.inputs == {"image": (image.shape, image.dtype)}
    for _ in range(2):
        got = program({"image": image})
        assert len(got) == len(want)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_process_of_it_never_imports_tvm_and_stays_small(compiled, tmp_path):
    path, image, want = compiled
    np.save(tmp_path / "in.npy", image)
    code = f"""
import sys
import numpy as np
from tvm_easyquant import deploy
from tvm_easyquant.errors import GraphError
program = deploy.Program({str(path)!r})
np.save({str(tmp_path / "out.npy")!r}, program({{"image": np.load({str(tmp_path / "in.npy")!r})}})[0])
print([name for name in ("tvm", "onnx", "scipy") if name in sys.modules])
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    found = python(code)
    assert found.returncode == 0, found.stderr
    modules, peak = map(json.loads, found.stdout.splitlines())
    assert modules == [] and peak < 60 * 1024  # KiB; with the tvm package it is over 70 MiB
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), want[0])


def test_it_takes_what_tvmc_compiled(tmp_path):
    from tvm_easyquant import demo

    model, images = demo.network_path(), demo.images()
    np.savez(tmp_path / "calibration.npz", image=images["calibration_images"][:8])
    table, archive = tmp_path / "net.json", tmp_path / "net.tar"
    calibration = tmp_path / "calibration.npz"
    for command in (
        ["quantize", model, "--calibration", calibration, "--method", "minmax", "-o", table],
        ["compile", model, "--target", f"easyquant -table={table}, llvm", "-o", archive],
    ):
        done = tvmc(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    q = eq.quantize(str(model), images["calibration_images"][:8], method="minmax")
    image = images["test_images"][:1]
    np.testing.assert_array_equal(
        deploy.Program(archive)({"image": image})[0], eq.Executor(q.build("llvm"))({"image": image})[0]
    )


def test_what_is_wrong_is_named(compiled, tmp_path, monkeypatch):
    path, image, _ = compiled
    program = deploy.Program(path)
    cases = [
        ({}, "input image is missing"),
        ({"image": image, "mask": image}, r"no input mask; the inputs are \['image'\]"),
        ({"image": image[..., 1:]}, "input image is float32 .* the network takes float32"),
        ({"image": image.astype(np.float64)}, "input image is float64"),
    ]
    for feed, message in cases:
        with pytest.raises(deploy.DeployError, match=message):
            program(feed)
    with pytest.raises(deploy.DeployError, match="nothing.so does not exist"):
        deploy.Program(tmp_path / "nothing.so")
    text = tmp_path / "text.so"
    text.write_text("this is no library")
    with pytest.raises(deploy.DeployError, match=r"text\.so"):
        deploy.Program(text)
    with pytest.raises(deploy.DeployError, match="is no TVM runtime"):
        deploy.Program(path, runtime=text)
    other = tmp_path / "other.tar"
    with tarfile.open(other, "w") as archive:
        archive.add(text, "text.so")
    with pytest.raises(deploy.DeployError, match="no archive of tvmc compile.*mod.so"):
        deploy.Program(other)
    with tarfile.open(other, "w") as archive:  # was an AttributeError: None has no read
        archive.add(text.parent, "mod.so", recursive=False)
    with pytest.raises(deploy.DeployError, match="'mod.so' is no file in it"):
        deploy.Program(other)
    monkeypatch.delitem(sys.modules, "tvm", raising=False)
    monkeypatch.setattr(deploy.util, "find_spec", lambda name: None)
    with pytest.raises(deploy.DeployError, match="runtime="):
        deploy.find_runtime()


# -- threads


@pytest.fixture(scope="module")
def served(compiled):
    """(net.so, images, the outputs of each by a call of its own)."""
    path, image, _ = compiled
    rng = np.random.default_rng(1)
    images = [rng.standard_normal(image.shape).astype(np.float32) for _ in range(24)]
    with deploy.Program(path, contexts=1) as program:
        return path, images, [program(image)[0] for image in images]


def wrong_answers(run, images, want, threads=8, calls=100):
    """How many of the calls of so many threads at once gave other outputs than one call alone."""
    wrong, start = [], threading.Barrier(threads)

    def ask(number):
        start.wait()
        for call in range(calls):
            i = (7 * number + call) % len(images)
            if not np.array_equal(run(images[i])[0], want[i]):
                wrong.append(i)

    callers = [threading.Thread(target=ask, args=(number,)) for number in range(threads)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    return len(wrong)


@pytest.mark.parametrize("threads", [None, 1, 2])
@pytest.mark.parametrize("kind", ["so", "tar"])
def test_one_program_serves_eight_threads(served, tmp_path, kind, threads):
    """Eight threads wrote their inputs into one executor and read each other's outputs: 275 of 4,000."""
    path, images, want = served
    if kind == "tar":
        graph, calibration = networks.chain(channels=16)
        path = tmp_path / "net.tar"
        eq.quantize(graph, calibration, method="minmax").build().export(path)
    with deploy.Program(path, contexts=3, threads=threads) as program:
        assert wrong_answers(program, images, want) == 0


def test_one_executor_serves_eight_threads(served):
    """383 wrong of 4,000."""
    path, images, want = served
    with executor(path, contexts=3) as network:
        assert wrong_answers(network, images, want) == 0
        assert all(ms > 0 for ms in network.milliseconds(3))
    with pytest.raises(GraphError, match="is closed"):
        network(images[0])


@pytest.mark.parametrize("kind", ["Program", "Executor"])
def test_calls_at_once_have_a_context_each_and_others_wait(served, kind):
    """An executor's callers took turns: two threads were no faster than one."""
    path, images, want = served
    make = deploy.Program if kind == "Program" else executor
    with make(path, contexts=2) as network:
        for image, outputs in zip(images, want, strict=True):
            np.testing.assert_array_equal(network(image)[0], outputs)
        pool = network._contexts if kind == "Executor" else network._networks[0].contexts
        assert pool._left == 1  # one thread needs one
        runs = pool.take()
        np.testing.assert_array_equal(network(images[1])[0], want[1])  # does not wait for that
        others, found = pool.take(), []
        assert others is not runs and pool._left == 0
        waits = threading.Thread(target=lambda: found.append(network(images[2])[0]))
        waits.start()
        waits.join(0.05)
        assert waits.is_alive() and not found
        pool.give(others)
        waits.join(30)
        np.testing.assert_array_equal(found[0], want[2])
        pool.give(runs)


def test_settings_that_are_no_counts_are_refused(served):
    for number in (0, -1, True, 1.5, "2"):
        for option in ("contexts", "threads"):
            with pytest.raises(deploy.DeployError, match=f"{option} is .*; use 1 or more"):
                deploy.Program(served[0], **{option: number})


def stored_weights(path):
    """A library of TVM's own that stores its weights beside the code, as a user's `relay.build` does."""
    import tvm
    from tvm import relay

    rng = np.random.default_rng(0)
    x = relay.var("x", shape=(2, 64))
    for size in (512, 4):
        width = 64 if size == 512 else 512
        x = relay.nn.dense(x, relay.const(rng.standard_normal((size, width)).astype(np.float32)))
    module = tvm.IRModule.from_expr(relay.Function(relay.analysis.free_vars(x), x))
    with tvm.transform.PassContext(opt_level=3):
        relay.build(module, "llvm").export_library(str(path))
    return path


def weights_at(program, module):
    """Where an executor's first weights lie."""
    handle = program._tvm.call(program._tvm.function(module, "get_input"), "p0")
    return ctypes.cast(handle, ctypes.POINTER(dlpack.Tensor)).contents.data


@pytest.mark.relay
def test_contexts_share_weights_that_are_stored_beside_the_code(tmp_path):
    """The executor's own way to make one more copies them: four contexts, four copies."""
    program = deploy.Program(stored_weights(tmp_path / "net.so"), contexts=3)
    pool = program._networks[0].contexts
    contexts = [pool.take() for _ in range(3)]
    modules = [context.close.peek()[2][3][0] for context in contexts]
    assert len(set(modules)) == 3
    assert len({weights_at(program, module) for module in modules}) == 1
    x = np.ones((2, 64), np.float32)
    for context in contexts:
        pool.give(context)
    first = program(x)[0]
    assert np.abs(first).max() > 0
    for context in contexts:
        np.copyto(context.inputs["x"], x)
        context.run()
        np.testing.assert_array_equal(context.outputs[0], first)
    program.close()


def test_the_three_steps_are_each_threads_own(served):
    """Another thread's set_inputs between mine and run gave me its outputs."""
    path, images, want = served
    program = deploy.Program(path, contexts=1)
    found, turn = {}, [threading.Event() for _ in range(2)]

    def other():
        for step, message in ((program.run, "set_inputs"), (program.outputs, "set_inputs and run")):
            try:
                step()
            except deploy.DeployError as error:
                found[message] = str(error)
        program.set_inputs(images[1])
        turn[0].set()
        turn[1].wait(30)
        program.run()
        found["outputs"] = program.outputs()[0]

    program.set_inputs(images[0])
    thread = threading.Thread(target=other)
    thread.start()
    turn[0].wait(30)
    program.run()
    turn[1].set()
    thread.join()
    for message in ("set_inputs", "set_inputs and run"):
        assert f"this thread has not called {message}; program(feed)" in found[message]
    np.testing.assert_array_equal(program.outputs()[0], want[0])
    np.testing.assert_array_equal(found["outputs"], want[1])
    np.testing.assert_array_equal(program(images[2])[0], want[2])
    program.close()


def test_a_closed_program_is_closed_for_all(served):
    path, images, want = served
    program, stopped, wrong = deploy.Program(path, contexts=2), [], []

    def ask():
        while True:
            try:
                if not np.array_equal(program(images[0])[0], want[0]):
                    wrong.append(1)
            except deploy.DeployError as error:
                stopped.append(str(error))
                return

    program.set_inputs(images[0])
    callers = [threading.Thread(target=ask) for _ in range(4)]  # two of them wait for a context
    for caller in callers:
        caller.start()
    time.sleep(0.05)
    program.close()
    for caller in callers:
        caller.join(30)
    assert stopped == [f"{path.name} is closed"] * 4 and not wrong
    program.close()  # was freed once
    for call in (
        lambda: program(images[0]),
        lambda: program.set_inputs(images[0]),
        program.run,
        program.outputs,
    ):
        with pytest.raises(deploy.DeployError, match=r"net\.so is closed"):
            call()


def asked_in_child(program, images, want, answers):
    """What a child of fork finds: right by its only thread, wrong by four of its own."""
    alone = all(np.array_equal(program(image)[0], want[i]) for i, image in enumerate(images))
    answers.put((alone, wrong_answers(program, images, want, threads=4, calls=20)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("kind", ["Program", "Executor"])
def test_a_process_may_be_forked_after_the_network_ran(served, kind):
    """The child waited for ever: TVM's threads, which its call was handed to, stayed in the parent."""
    path, images, want = served
    make, options = {"Program": (deploy.Program, dict(threads=2)), "Executor": (executor, {})}[kind]
    fork = multiprocessing.get_context("fork")
    with make(path, contexts=2, **options) as network:
        stop, wrong = threading.Event(), []

        def ask():  # what another thread runs while the process is forked
            while not stop.is_set():
                if not np.array_equal(network(images[3])[0], want[3]):
                    wrong.append(1)

        other = threading.Thread(target=ask)
        other.start()
        for _ in range(3):
            network(images[0])
            answers = fork.SimpleQueue()
            child = fork.Process(target=asked_in_child, args=(network, images, want, answers))
            child.start()
            child.join(60)
            assert child.exitcode == 0, "the child hangs" if child.exitcode is None else child.exitcode
            assert answers.get() == (True, 0)
        stop.set()
        other.join()
        assert not wrong
        np.testing.assert_array_equal(network(images[1])[0], want[1])


FORK = """
import os, sys
import numpy as np
from tvm_easyquant import deploy
program, image = deploy.Program({path!r}, threads=2), np.load({image!r})
want = program(image)[0].tobytes()
child = os.fork()
if not child:
    if program(image)[0].tobytes() != want:
        sys.exit(1)
    child = os.fork()
    if not child:
        program.close()
        sys.exit(0)
status = os.waitpid(child, 0)[1]
sys.exit(status and 2)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_ends_as_any_process(compiled, tmp_path):
    """A server's child that left by exit(), not as multiprocessing's do, was ended by SIGABRT: TVM joined threads
    that it did not have."""
    path, image, _ = compiled
    np.save(tmp_path / "in.npy", image)
    code = FORK.format(path=str(path), image=str(tmp_path / "in.npy"))
    result = python(code, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")


THREADS = """
import os, sys, threading
import numpy as np
from tvm_easyquant import deploy
from tvm_easyquant.errors import GraphError
cpus, image = os.sched_getaffinity(0), np.load({image!r})

def ran(threads):
    program = deploy.Program({path!r}, threads=threads)
    return program(image)[0].tobytes(), len(os.listdir("/proc/self/task"))

one, tasks = ran(1)
assert tasks == len(os.listdir("/proc/self/task")) and threading.active_count() == 1
two, tasks_of_two = ran(2)
again, _ = ran(1)
assert one == two == again and tasks_of_two == tasks + 2, (tasks, tasks_of_two)  # ours, and its worker
usual, tasks_of_usual = ran(None)
assert usual == one and tasks_of_usual == tasks + 2 + 3, tasks_of_usual  # TVM_NUM_THREADS=3
assert os.sched_getaffinity(0) == cpus
for thread in os.listdir("/proc/self/task"):  # TVM binds each worker to a CPU, all callers' to the same
    assert os.sched_getaffinity(int(thread)) == cpus
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="counts threads as Linux shows them")
def test_threads_are_a_programs_own_not_the_environments(compiled, tmp_path):
    path, image, _ = compiled
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one CPU")
    np.save(tmp_path / "in.npy", image)
    code = THREADS.format(path=str(path), image=str(tmp_path / "in.npy"))
    result = python(code, timeout=120, TVM_NUM_THREADS="3", OPENBLAS_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr


def test_what_the_page_says_runs(served, tmp_path, monkeypatch):
    graph, calibration = networks.chain(channels=16)
    eq.quantize(graph, calibration, method="minmax").build().export(tmp_path / "net.tar")
    monkeypatch.chdir(tmp_path)
    _, images, want = served
    page = (ROOT / "docs" / "deploy.rst").read_text(encoding="utf-8")
    names = {"image": images[0], "images": images}
    blocks = re.findall(r"code-block:: python\n\n((?:   .*\n|\n)+)", page)
    for block in blocks:
        exec(textwrap.dedent(block), names)
    assert len(blocks) == 2
    np.testing.assert_array_equal(names["scores"], want[0])
    np.testing.assert_array_equal([outputs[0] for outputs in names["found"]], want)


# -- batches and arrays


def relay_library(path, expression):
    """A library of a Relay expression."""
    import tvm
    from tvm import relay

    module = tvm.IRModule.from_expr(relay.Function(relay.analysis.free_vars(expression), expression))
    relay.build(module, "llvm").export_library(str(path))
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """(a network of batch 2, eight samples, their outputs two by two)."""
    graph, images = networks.chain(batch=2)
    path = tmp_path_factory.mktemp("pairs") / "net.so"
    eq.quantize(graph, images, method="minmax").build().export_library(str(path))
    with deploy.Program(path) as program:
        return path, np.concatenate(images), np.concatenate([program({"image": x})[0] for x in images])


def test_any_number_of_samples_is_cut_into_the_compiled_batch(pairs):
    path, samples, want = pairs
    program = deploy.Program(path)
    for count in range(1, 9):
        (found,) = program(samples[:count])
        np.testing.assert_array_equal(found, want[:count])
        assert found.base is None  # no view of what the next call overwrites
    with pytest.raises(deploy.DeployError, match=r"input image is float32 \(0, 3, 10, 10\)"):
        program(samples[:0])
    with pytest.raises(
        deploy.DeployError, match=r"input image is float32 \(1, 3, 10, 10\), the network takes"
    ):
        program.set_inputs(samples[:1])  # the three steps are one call's
    program.close()


def test_a_network_of_four_samples_gives_what_one_of_one_gives(tmp_path):
    rng = np.random.default_rng(0)
    samples, found = rng.standard_normal((7, 3, 8, 8)).astype(np.float32), []
    for batch in (1, 4):
        q = eq.quantize(networks.small_onnx(batch="n"), samples[:4], method="minmax", batch=batch)
        q.build().export(tmp_path / "net.tar")
        with deploy.Program(tmp_path / "net.tar") as program:
            assert program.inputs["x"][0] == (batch, 3, 8, 8)
            found.append(program(samples)[0])
    np.testing.assert_array_equal(*found)


@pytest.mark.relay
def test_outputs_without_the_batch_refuse_another_number_of_samples(tmp_path):
    """A sum over the batch would count the samples that fill the last call up."""
    from tvm import relay

    x = relay.var("x", shape=(2, 3))
    path = relay_library(tmp_path / "net.so", relay.Tuple([relay.exp(x), relay.sum(x, axis=0)]))
    program, samples = deploy.Program(path), np.arange(9, dtype=np.float32).reshape(3, 3)
    np.testing.assert_allclose(program(samples[:2])[1], [3, 5, 7])
    for count in (1, 3):
        message = rf"output 1 of shape \(3,\) has no batch dimension: give 2 samples, not {count}"
        with pytest.raises(deploy.DeployError, match=message):
            program(samples[:count])
    program.close()


@pytest.mark.relay
def test_samples_of_several_inputs_belong_together(tmp_path):
    from tvm import relay

    a, b, bias = (
        relay.var(name, shape=shape) for name, shape in (("a", (2, 3)), ("b", (2, 3)), ("bias", (3,)))
    )
    program = deploy.Program(relay_library(tmp_path / "net.so", relay.add(relay.add(a, b), bias)))
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 5, 3)).astype(np.float32)
    bias = np.float32([10, 20, 30])
    np.testing.assert_array_equal(program({"a": a, "b": b, "bias": bias})[0], a + b + bias)
    for feed, message in (
        ({"a": a, "b": b[:2], "bias": bias}, "input b has 2 samples, another has 5"),
        ({"a": a, "b": b[:4], "bias": bias}, "input b has 4 samples, another has 5"),
        (
            {"a": a, "b": b, "bias": bias.astype(np.float64)},
            r"input bias is float64 \(3,\), the network takes float32",
        ),
        (a, r"the network has 3 inputs; give \{name: array\} of \['a', 'b', 'bias'\]"),
    ):
        with pytest.raises(deploy.DeployError, match=message):
            program(feed)
    program.close()


def test_it_does_not_matter_how_an_array_lies_in_memory(served):
    path, images, want = served
    image = images[0]
    unaligned = np.zeros(image.nbytes + 1, np.uint8)
    unaligned[1:] = image.view(np.uint8).ravel()
    wide = np.zeros((*image.shape[:3], 2 * image.shape[3]), np.float32)
    wide[..., ::2] = image
    frozen = image.copy()
    frozen.flags.writeable = False
    laid = {
        "Fortran's order": np.asfortranarray(image),
        "every second": wide[..., ::2],
        "backwards": image[..., ::-1].copy()[..., ::-1],
        "unaligned": unaligned[1:].view(np.float32).reshape(image.shape),
        "read only": frozen,
    }
    assert not laid["unaligned"].flags.aligned and not laid["every second"].flags.contiguous
    with deploy.Program(path) as program, executor(path) as network:
        for array in laid.values():
            np.testing.assert_array_equal(program({"image": array})[0], want[0])
            np.testing.assert_array_equal(network(array)[0], want[0])
            program.set_inputs(array)
            program.run()
            np.testing.assert_array_equal(program.outputs()[0], want[0])


def test_an_array_that_does_not_fit_is_refused_with_the_cure(served):
    path, images, _ = served
    image = images[0]
    cases = [
        (image.astype(np.float64), r"input image is float64 .*; give array\.astype\(numpy\.float32\)"),
        (image.astype(">f4"), r"input image is >f4 .*; give array\.astype\(numpy\.float32\)"),
        (
            image.astype(np.uint8),
            r"input image is uint8 .*; prepare it as for training \(scale, mean, std\)",
        ),
        (image.transpose(0, 2, 3, 1), r"its channels are last: give array\.transpose\(0, 3, 1, 2\)"),
        (image[0], r"it lacks the first dimension: give array\[None\]"),
        (image[:, :2], r"takes float32 \(1, 3, 10, 10\)$"),
        ({"picture": image}, r"there is no input picture; the inputs are \['image'\]"),
        ({"image": image, 3: image}, "there is no input 3"),
    ]
    with deploy.Program(path) as program, executor(path) as network:
        for feed, message in cases:
            for call, error in (
                (program, deploy.DeployError), (program.set_inputs, deploy.DeployError), (network, GraphError),
            ):  # fmt: skip
                with pytest.raises(error, match=message) as raised:
                    call(feed)
                assert "\n" not in str(raised.value)
        with pytest.raises(deploy.DeployError, match=r"input image is float64 \(1, 3, 10, 10\)"):
            program(image.tolist())
        for feed in ([[1.0], [1.0, 2.0]], None, "image.png"):
            with pytest.raises(deploy.DeployError, match="input image is "):
                program(feed)
            with pytest.raises(GraphError, match="input image is "):
                network(feed)


@pytest.mark.slow
def test_the_soak(served):
    """Eight threads in each of four processes, a hundred thousand calls in all."""
    path, images, want = served
    fork = multiprocessing.get_context("fork")
    program, answers = deploy.Program(path), fork.SimpleQueue()
    children = [
        fork.Process(target=lambda: answers.put(wrong_answers(program, images, want, calls=3125)))
        for _ in range(4)
    ]
    for child in children:
        child.start()
    assert [answers.get() for _ in children] == [0] * 4
    for child in children:
        child.join(60)
        assert child.exitcode == 0


# -- which TVM


@pytest.mark.relay
def test_another_version_of_the_runtime_is_told_once(served, monkeypatch, caplog):
    import tvm

    path, images, want = served
    library = deploy.find_runtime()
    assert deploy.runtime_version(deploy.runtime_file()) == tvm.__version__
    for here, told in ((None, 0), ("0.19.7", 0), ("0.18.0", 1)):
        monkeypatch.setattr(deploy, "runtime_version", lambda _, here=here: here)
        caplog.clear()
        for _ in range(2):  # a server that loads it again
            with deploy.Program(path, library) as program:
                np.testing.assert_array_equal(program(images[0])[0], want[0])
        lines = [
            record.getMessage() for record in caplog.records if "compiled by TVM" in record.getMessage()
        ]
        assert len(lines) == told
    assert (
        "net.so was compiled by TVM 0.19.0, and the runtime library is TVM 0.18.0's: they were not"
        in lines[0]
    )


@pytest.mark.relay
def test_a_library_that_does_not_say_its_version_is_no_reason_to_speak(tmp_path):
    (tmp_path / "lib.so").write_bytes(b"nothing")
    assert deploy.runtime_version(tmp_path / "lib.so") is None


@pytest.mark.relay
def test_what_is_not_known_of_a_library_is_said_once(tmp_path, caplog):
    path = stored_weights(tmp_path / "net.so")
    for _ in range(3):
        deploy.Program(path).close()
    assert caplog.text.count("net.so has no record of what it needs") == 1
