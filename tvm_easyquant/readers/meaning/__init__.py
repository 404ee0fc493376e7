"""The float meaning of ONNX's operators, from its specification, over `network.tensors.Tensors`."""
