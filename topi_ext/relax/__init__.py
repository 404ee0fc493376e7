"""Our kernels in today's apache-tvm: TIR functions that a Relax module calls."""
