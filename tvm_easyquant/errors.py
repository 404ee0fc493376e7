"""Every error that says what a user can do: one base class, one line each, with the cure.

They are also the built-in kind they were before there was a base class (mostly ValueError).
"""

from topi_ext.errors import KernelError


class EasyQuantError(Exception):
    """A mistake that its message explains in a line: what is wrong, where, and the cure."""


class GraphError(EasyQuantError, ValueError):
    """The network cannot be used; the message names the node and the cure."""


class RangeError(GraphError, OverflowError):
    """A layer's integers do not fit int32; ``layer`` is its name, ``reason`` why."""

    def __init__(self, layer: str, reason: str, cure: str = "keep the layer float (skip)"):
        super().__init__(f"layer {layer}: {reason}; {cure}")
        self.layer, self.reason, self.cure = layer, reason, cure

    def __reduce__(self):  # by its parts: a search may run in other processes
        return type(self), (self.layer, self.reason, self.cure)


class LoadError(EasyQuantError, ValueError):
    """A model cannot be loaded; the message names the file, tensor or node and the cure."""


class QuantizedModelError(EasyQuantError, ValueError):
    """A quantized model cannot be taken over; the message names the node and why."""


class SourceError(EasyQuantError, ValueError):
    """A source of data cannot be used; the message names it and the cure."""


class ImageError(EasyQuantError, ValueError):
    """A picture or its preprocessing cannot be used; the message names it and the cure."""


class CalibrationError(EasyQuantError, ValueError):
    """Calibration data cannot be used; the message names the sample, the tensor and the cure."""


class ConfigError(EasyQuantError, ValueError):
    """A setting is wrong; the message names it and what is allowed."""


class TableError(EasyQuantError, ValueError):
    """A scale table cannot be used; the message says what is wrong with it."""


class CheckpointError(EasyQuantError, ValueError):
    """The file of an interrupted run cannot be taken up; the message names it and the cure."""


class DropError(EasyQuantError, ValueError):
    """No choice of bits meets the drop asked for; the message says how near the best came."""


class CurvesError(EasyQuantError, ValueError):
    """A search record cannot be used; the message names the file and the cure."""


class ReportError(EasyQuantError, ValueError):
    """A report cannot be compared; the message names the file and the cure."""


class EvaluationError(EasyQuantError, ValueError):
    """Labelled data or a metric cannot be used; the message names the file, the sample and the cure."""


class ExportError(EasyQuantError, ValueError):
    """A network cannot be written; the message names the node and the cure."""


class VerifyError(EasyQuantError, ValueError):
    """Two models cannot be compared; the message says why."""


class TargetError(EasyQuantError, ValueError):
    """The target cannot run these kernels; the message says what to name instead."""


class TuneError(EasyQuantError, ValueError):
    """Tuning cannot go on; the message names the file, line or flag and the cure."""


class WriteError(EasyQuantError, OSError):
    """A file cannot be written; the message names it and says why."""


class DeployError(EasyQuantError, RuntimeError):
    """A library, a network or an input that cannot be used; the message names it."""


class TVMMissing(EasyQuantError, ImportError):
    """No usable TVM in this Python; the message says what to install."""


class HostError(EasyQuantError, NotImplementedError):
    """The installed host does not do this; the message says what does."""


class ClusterError(EasyQuantError, RuntimeError):
    """A cluster cannot be used, or is lost; the message says what is wrong with it and what goes on."""


class LinkerMissing(EasyQuantError, RuntimeError):
    """There is no C++ compiler to link with; the message says what to install."""


class UserError(EasyQuantError, ValueError):
    """A mistake of the user's; printed as one line."""


def is_users(error: BaseException) -> bool:
    """Whether the message is meant for the user: an error class of ours, a file, or a number too large.

    Anything else is a bug and keeps its traceback.
    """
    return isinstance(error, (EasyQuantError, KernelError, OSError, OverflowError))


def one_line(error: BaseException) -> str:
    """The error's message in one line; its class if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def last_line(error: BaseException) -> str:
    """The last line of the error's message, where TVM and others say what went wrong; see `one_line`."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
