"""The kernels as Relay operators, and the pass that puts them into a module."""
