"""The errors that a user can mend. Each message is one line: what was found, what was expected, what to do.

`exit_code` is what a script ends with: 2 where the command, the config, the data or a file must change, 1 where the
work failed, 128 + n where signal n ended it.
"""

import signal


class UserError(ValueError):
    """The command, the config, the data or a file must change."""

    exit_code = 2


class ConfigError(UserError):
    """A config that cannot work; the message names the field."""


class FileError(UserError):
    """A file holds something else than its reader expects. The message says what, and does not name the file."""


class DataError(UserError):
    """A data set, an image or a setting that cannot be used."""


class CorruptImage(DataError):
    """One image that cannot be decoded; the message is its name and the reason."""


class UnreadableImage(DataError):
    """One image whose file cannot be read, which says nothing about what it holds; the message is its name and why."""


class CheckpointError(UserError):
    """There is no checkpoint to read, or it does not fit."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint lacks a part, or its bytes are not the ones that were written."""


class WeightsError(CheckpointError):
    """The weights of another system cannot be read or do not fit. `details` are lines to show before the message."""

    def __init__(self, message: str, details: str = ""):
        super().__init__(message)
        self.details = details


class EvaluationError(UserError):
    """There is nothing to evaluate on, or no figure comes of it."""


class ReportError(UserError):
    """No report can be made of a result."""


class ExportError(UserError):
    """A child cannot be taken out, or what was written computes something else."""

    exit_code = 1


class TrainingError(RuntimeError):
    """Training cannot go on."""

    exit_code = 1


class ProcessLost(TrainingError):
    """Another process of the run failed, was stopped or is gone; the message names it.

    Args:
      exit_code: what this process ends with, too.
    """

    def __init__(self, message: str, exit_code: int = TrainingError.exit_code):
        super().__init__(message)
        self.exit_code = exit_code


class SaveError(TrainingError):
    """A checkpoint cannot be written, because the disk is full or for the like."""


class Interrupted(BaseException):
    """A signal ended the work where nothing needed saving. No handler of errors takes it for one.

    Args:
      signum: the signal.
    """

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum, self.exit_code = signum, 128 + signum


class Stopped(Exception):
    """A signal ended the work, and what was done is saved.

    Args:
      signum: the signal. where: how far the work was, such as 'at step 3'.
    """

    def __init__(self, signum: int, where: str):
        super().__init__(f"{signal.Signals(signum).name} {where}")
        self.signum, self.exit_code = signum, 128 + signum
