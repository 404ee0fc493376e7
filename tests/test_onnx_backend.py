"""ONNX's own node tests of the quantized operators: import, compile, run, compare.

Every test that onnx ships for them is here: it passes, or is in `REFUSED` or `WRAPPED` with the reason.
"""

import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")
pytest.importorskip("onnx")
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from tvm_easyquant import onnx_backend
from tvm_easyquant.readers.onnx_quantized import QuantizedModelError

CASES = {
    case.name: case
    for case in load_model_tests(kind="node")
    if re.search("(quantizelinear|qlinear|integer)", case.name) and "attention" not in case.name
}
#: name of tests -> the error that refuses the model
REFUSED = {
    r".*_(e4m3fn|e5m2|float4e2m1|u?int4)(_.*)?": "integers of 8 or 16 bits can be taken over",
    r".*_blocked(_a?symmetric)?": r"scales by block \(block_size\) cannot be taken over",
    r"test_dynamicquantizelinear_.*expanded|test_dynamicquantizelinear_expanded":
        "its scale is computed, not a constant",
}  # fmt: skip
#: expected values that wrap at int8 where the operator is defined to saturate; ONNX Runtime saturates, too
WRAPPED = r"test_qlinearmatmul_[23]D_int8_float(16|32)"


def reason(name):
    return next((why for pattern, why in REFUSED.items() if re.fullmatch(pattern, name)), None)


def data_sets(case):
    for folder in sorted(Path(case.model_dir).glob("test_data_set_*")):
        yield [
            [numpy_helper.to_array(onnx.load_tensor(folder / f"{kind}_{i}.pb")) for i in range(count)]
            for kind in ("input", "output")
            if (count := len(list(folder.glob(f"{kind}_*.pb"))))
        ]


def the_model(case):
    return onnx.load(Path(case.model_dir) / "model.onnx")


def same(ours, theirs, case):
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    if theirs.dtype.kind in "iu":
        np.testing.assert_array_equal(ours, theirs)
    else:
        np.testing.assert_allclose(ours, theirs, case.rtol, case.atol)


@pytest.mark.parametrize(
    "name", sorted(name for name in CASES if reason(name) is None and not re.fullmatch(WRAPPED, name))
)
def test_node(name):
    model = onnx_backend.prepare(the_model(CASES[name]))
    for inputs, expected in data_sets(CASES[name]):
        for ours, theirs in zip(model.run(inputs), expected, strict=True):
            same(ours, theirs, CASES[name])


@pytest.mark.parametrize("name", sorted(name for name in CASES if reason(name) is not None))
def test_a_refused_node_says_why(name):
    with pytest.raises(QuantizedModelError, match=reason(name)):
        model = onnx_backend.prepare(the_model(CASES[name]))
        for inputs, _ in data_sets(CASES[name]):
            model.run(inputs)


@pytest.mark.parametrize("name", sorted(name for name in CASES if re.fullmatch(WRAPPED, name)))
def test_where_onnx_s_expected_values_wrap_ours_saturate(name):
    model = onnx_backend.prepare(the_model(CASES[name]))
    for (a, sa, za, b, sb, zb, sy, zy), (expected,) in data_sets(CASES[name]):
        (ours,) = model.run([a, sa, za, b, sb, zb, sy, zy])
        sums = (a.astype(np.int64) - za) @ (b.astype(np.int64) - zb)
        exact = np.rint(sums * (np.float64(sa) * np.float64(sb) / np.float64(sy))).astype(np.int64) + zy
        inside = (exact >= -128) & (exact <= 127)
        assert 0 < inside.sum() < inside.size
        np.testing.assert_array_equal(ours, np.clip(exact, -128, 127))
        np.testing.assert_array_equal(ours[inside], expected[inside])
        assert (
            np.abs(expected[~inside].astype(np.int64) - exact[~inside]).min() > 200
        )  # the far end of int8


def test_the_table_covers_what_onnx_ships():
    assert len(CASES) >= 15
    passing = {name for name in CASES if reason(name) is None}
    for needed in ("quantizelinear", "quantizelinear_axis", "dequantizelinear", "dequantizelinear_axis", "qlinearconv",
                   "convinteger_with_padding", "convinteger_without_padding", "matmulinteger",
                   "qlinearmatmul_2D_uint8_float32", "qlinearmatmul_3D_uint8_float32", "dynamicquantizelinear",
                   "dynamicquantizelinear_max_adjusted", "dynamicquantizelinear_min_adjusted"):  # fmt: skip
        name = f"test_{needed}"
        assert name in passing or name.removesuffix("_uint8_float32") in passing, name


def test_a_backend_compiles_once_for_the_same_constants():
    case = CASES["test_qlinearconv"]
    model = onnx_backend.prepare(the_model(case))
    ((inputs, _),) = data_sets(case)
    model.run(inputs)
    first = model.ready
    inputs[0] = inputs[0] ^ np.uint8(1)  # another picture
    model.run(inputs)
    assert model.ready is first
    inputs[1] = inputs[1] * np.float32(2)  # another scale
    model.run(inputs)
    assert model.ready is not first
    assert onnx_backend.supports_device("CPU") and not onnx_backend.supports_device("CUDA")
