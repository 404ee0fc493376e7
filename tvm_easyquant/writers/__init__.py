"""A quantized network for others: QDQ ONNX and its check, ncnn's table."""
