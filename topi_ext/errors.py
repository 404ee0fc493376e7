"""The errors of the kernels that say what a user can do, or why not; one base class."""


class KernelError(ValueError):
    """A layer, an operator or a row that the kernels cannot take; the message names it and says why."""


class LoweringError(KernelError):
    """A qnn operator cannot be lowered exactly; the message names it."""


class AccumulatorOverflow(KernelError, OverflowError):
    """A layer's sums do not fit int32 in any kernel; the message has the figure."""
