"""The command line: python -m experiments COMMAND [options].

Exit codes: 0 done, 2 something the user can put right, a loss that is not finite
included (one line on stderr), 3 another process was lost, 4 a check failed, 5 out of
time (what finished is kept), 130 interrupted.
"""

import difflib
import errno
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from experiments.common import memory, supervise
from experiments.common.errors import UserError


class Command(NamedTuple):
    """A module with `main(config) -> int | None`, loaded when the command is asked for.

    One whose config has `resume` also has `stored(config)`, which returns the config
    that an earlier run began with.
    """

    module: str
    config: str
    summary: str


COMMANDS = {
    "train": Command(
        "experiments.digits.train",
        "TrainConfig",
        "trains a small residual net with and without a normalization; with "
        "--config NAME a ResNet, on one device or many hosts",
    ),
    "run": Command(
        "experiments.claims.study",
        "RunConfig",
        "measures what is claimed about batch normalization, with verdicts",
    ),
    "verify": Command(
        "experiments.claims.verify",
        "VerifyConfig",
        "checks the files of a run and derives its verdicts again",
    ),
    "report": Command(
        "experiments.claims.report",
        "ReportConfig",
        "makes one page of a run, with figures",
    ),
    "bench": Command(
        "experiments.bench.main",
        "BenchConfig",
        "measures jaxbn next to other libraries: errors, time, memory",
    ),
    "eval": Command(
        "experiments.scale.evaluate",
        "EvalConfig",
        "evaluates a trained ResNet: running, exact or batch statistics",
    ),
    "recalibrate": Command(
        "experiments.scale.recalibrate",
        "RecalibrateConfig",
        "computes exact statistics for a trained ResNet",
    ),
    "fold": Command(
        "experiments.scale.fold",
        "FoldConfig",
        "folds the batch normalization of a trained ResNet into its convolutions",
    ),
    "export": Command(
        "experiments.scale.export",
        "ExportConfig",
        "exports a trained ResNet as one file, and checks it",
    ),
    "collectives": Command(
        "experiments.collectives.main",
        "CollectivesConfig",
        "counts what the devices of a training step exchange, against a model",
    ),
}


# What a file system refuses, wherever that is found out.
_REFUSED = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.EPERM,
    errno.EROFS,
    errno.ESTALE,
}
_AT_SCALE = Command("experiments.scale.train", "ScaleConfig", "")
_DIGITS = "digits"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    name, *options = list(sys.argv[1:] if arguments is None else arguments) or [
        "--help"
    ]
    if name == "--version":
        print(f"jaxbn {importlib.import_module('jaxbn').__version__}")
        return 0
    if name in ("-h", "--help"):
        print(_usage())
        return 0
    if supervise.wanted(options):
        return supervise.supervise([name, *options])
    supervise.end_with_parent()
    if arguments is None and memory.RETURN not in options:
        memory.keep()  # of a process of its own; a caller decides for itself
    try:
        return _run(name, [word for word in options if word != memory.RETURN])
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        what = f"'{error.filename}'" if error.filename else "All files"
        print(
            f"error: {what} must be readable and writable, but: {error.strerror}. "
            "Make room or change the permissions, then try again.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except SystemExit as end:  # --help of a command
        return int(end.code or 0)


def _run(name: str, options: list[str]) -> int:
    if name not in COMMANDS:
        known = ", ".join(map(repr, COMMANDS))
        meant = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean {meant[0]!r}? " if meant else ""
        raise UserError(
            f"The command must be one of {known}, got {name!r}. {hint}"
            "See python -m experiments --help."
        )
    command, prog = COMMANDS[name], f"python -m experiments {name}"
    try:
        parse = importlib.import_module("experiments.common.options").parse
        named = _named(name, options)
        if named != _DIGITS:
            command = _AT_SCALE
        module = importlib.import_module(command.module)
    except ModuleNotFoundError as error:
        raise UserError(
            f"`{name}` must find the packages it uses, but there is {error}. "
            'Install them: pip install "jaxbn[experiments,peers]".'
        ) from error
    kind = getattr(module, command.config)
    begin = module.CONFIGS.get(named) if command is _AT_SCALE else None
    config = parse(kind, options, prog=prog, default=begin)
    if getattr(config, "resume", False):
        config = parse(kind, options, prog=prog, default=module.stored(config))
    return module.main(config) or 0


def _named(name: str, options: list[str]) -> str:
    """The configuration that `train` is asked for: the digits, or one at scale."""
    if name != "train":
        return _DIGITS
    named = importlib.import_module("experiments.scale.options").named
    return named(options) or _DIGITS


def _usage() -> str:
    lines = [f"  {name:11} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python -m experiments COMMAND [options]",
            "",
            *lines,
            "",
            "Options of a command: python -m experiments COMMAND --help",
            f"{memory.RETURN} with any: freed memory goes back to the system (slower)",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
