"""The operators of ONNX that a network of images, or a detector's tail, may hold."""

LISTED = [
    "Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Gemm",
    "BatchNormalization", "Clip", "Resize", "Upsample", "Pad", "Concat", "Slice", "Split", "Relu",
    "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "HardSigmoid", "HardSwish",
    "Sigmoid", "Tanh", "Softplus", "Softsign", "Gelu", "Mish", "Add", "Sub", "Mul", "Div", "Max", "Min",
    "Mean", "Sum", "Neg", "Abs", "Exp", "Log", "Sqrt", "Reciprocal", "Pow", "Flatten", "Reshape",
    "Squeeze", "Unsqueeze", "Transpose", "DepthToSpace", "SpaceToDepth", "Softmax", "LogSoftmax",
    "Hardmax", "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2",
    "ReduceProd", "ReduceSumSquare", "ReduceLogSumExp", "MatMul", "Identity", "Dropout", "LRN",
    "InstanceNormalization", "GroupNormalization", "LayerNormalization", "LpPool", "LpNormalization",
    "MeanVarianceNormalization", "Gather", "Expand", "Tile", "Where", "Erf", "Floor", "Ceil", "Round",
    "Sign", "Cast", "Shrink", "Einsum", "CenterCropPad", "Col2Im", "TopK", "ArgMax",
]  # fmt: skip
