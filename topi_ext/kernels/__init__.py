"""The computes of the kernels, as TIR."""
