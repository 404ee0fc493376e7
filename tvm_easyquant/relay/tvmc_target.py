"""The composite target ``easyquant``: what ``tvmc compile --target "easyquant -table=FILE, llvm"`` does."""

from __future__ import annotations

import re
import sys

from ..cli.common import UserError, is_users, last_line, one_line


def tokens(theirs):
    """tvmc's ``tokenize_target``, which stops at a slash, made to take any path after ``-table=``."""

    def tokenize(target):
        found, at = [], 0
        for table in re.finditer(r"""-table=("[^"]+"|'[^']+'|[^\s,"']+)""", target):
            found += [*theirs(target[at : table.start()]), table[0]]
            at = table.end()
        return [*found, *theirs(target[at:])]

    return tokenize


class Pipeline:
    """What ``--target "easyquant -table=FILE, llvm ..."`` does: quantize by the table, then lower.

    tvmc does not hand its own target to a composite target's pipeline, so it is noted where tvmc
    reads it (options such as ``--target-llvm-mcpu`` and those of ``--config`` included).
    """

    def __init__(self, records: str | None = None):
        """records: the file of ``--tuning-records``, which must be of the target's CPU."""
        self.target, self.records, self.asked_for = None, records, False

    def watching(self, target_from_cli):
        """tvmc's ``target_from_cli``, taking note of the target; an unknown one is tvmc's own error."""
        from tvm.driver.tvmc import TVMCException

        def watched(target, additional_target_options=None):
            try:
                found = target_from_cli(target, additional_target_options)
            except ValueError as error:
                raise TVMCException(f"target {target!r}: {last_line(error)}") from None
            except IndexError:  # tvmc's own parser of options
                raise TVMCException(f"target {target!r}: an option has no value after its =") from None
            self.target = found[0]
            self.asked_for = any(extra["name"] == "easyquant" for extra in found[1])
            return found

        return watched

    def configured(self, parse_configs):
        """tvmc's ``parse_configs``, with the settings of `build.build` for what its user does not set."""

        def parsed(texts):
            from .build import BUILD_CONFIG

            theirs = parse_configs(texts)
            return {**BUILD_CONFIG, **theirs} if self.asked_for else theirs

        return parsed

    def __call__(self, mod, params=None, mod_name="default", **options):
        from tvm.driver.tvmc import TVMCException

        from topi_ext.lower import LowerInteger

        from ..scales.table import ScaleTable
        from .build import cpu_target
        from .formats import as_nchw, has_nhwc
        from .framework import relay, tvm
        from .passes import EasyQuant
        from .tune import records_for, untuned_of

        try:
            if "table" not in options:
                raise UserError('target easyquant needs a scale table: "easyquant -table=FILE, llvm"')
            unknown = sorted(set(options) - {"table"})
            if unknown:
                raise UserError(f"target easyquant has no option {unknown}; it takes -table=FILE")
            target = cpu_target(self.target)
            if self.records is not None:
                records_for(self.records, target)
            table = ScaleTable.load(options["table"])
            if has_nhwc(mod):  # TFLite, Keras: as quantize has read the model
                bound = relay.build_module.bind_params_by_name(mod["main"], params or {})
                mod, params = as_nchw(tvm.IRModule.from_expr(bound)), None
            lower = LowerInteger(target)
            lowered = tvm.transform.Sequential([EasyQuant(table, params=params), lower])(mod)
            without, count = untuned_of(lower.layers, target)
            print(
                f"easyquant: {len(lower.layers)} integer layers, {without} of {count} kernels run untuned",
                file=sys.stderr,
            )
            return lowered
        except Exception as error:
            if not is_users(error):
                raise
            raise TVMCException(one_line(error)) from None
