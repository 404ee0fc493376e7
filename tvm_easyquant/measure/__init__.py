"""How good a quantized network is: accuracy and the report."""
