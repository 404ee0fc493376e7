"""Integer convolution kernels: their meaning, proofs, schedules and choice."""
