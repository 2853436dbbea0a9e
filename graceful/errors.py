"""Every error graceful raises on purpose, classified by what the caller can do next. Runs in every process.

    GracefulError                     exit 1   (never raised itself)
    |-- SpecError                     exit 2   the spec or the command line is wrong: edit it
    |-- DataError                     exit 2   the data named by the spec is missing, corrupt or does not join
    |-- InfrastructureError           exit 4   a service or disk failed: try again later
    |   |-- RegistryError             exit 4   MLflow is unreachable or refused; LeaseLostError: another writer
    |   |-- StorageError              exit 4   disk full, S3 refused, file vanished; StdoutError: of stdout
    |   |-- IntegrityError            exit 4   bytes do not have the digest that was recorded for them
    |   |-- MovedError                exit 4   another writer of an index committed first
    |   '-- ApiError                  exit 4   Kubernetes refused; in launch/refusals.py by what can be done:
    |                                          NotFoundError, ConflictError, ForbiddenError, GoneError,
    |                                          ThrottledError, UnreachableError, InvalidObjectError (exit 2)
    '-- TrainingError                 exit 5   training failed, was stopped or ran out of time
        |-- NonFiniteError            exit 5   loss or gradient is NaN or infinite
        '-- CollapsedError            exit 5   held-out error is at chance

A held version is not an error: it is a verdict, with exit code 3 (`EXIT_HELD`).
Messages say what, value, where, bound and remedy in one line. An error carries one message and optional facts, and
survives pickling, because it may be raised in a worker and read in the driver. Secrets in a message are hidden when the
error is made, since it is printed, recorded and repeated in many places.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_PASSED = 0
EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_HELD = 3
EXIT_INFRASTRUCTURE = 4
EXIT_TRAINING = 5
EXIT_CODES = (EXIT_PASSED, EXIT_BUG, EXIT_USAGE, EXIT_HELD, EXIT_INFRASTRUCTURE, EXIT_TRAINING)
"""Exit codes of commands and programs, as `graceful --help` lists them."""
EXIT_INTERRUPTED = 130
"""Exit code that a shell reports for SIGINT."""
EXIT_PIPE_CLOSED = 141
"""Exit code that a shell reports for SIGPIPE: the reader of stdout went away, and a verdict must not look like
passed."""
LONGEST_LINE = 2000
"""Characters of a message; of a longer one the middle is left out."""
LEFT_OUT = " [...] "


def one_line(text: object) -> str:
    """Return a text as one printable line: white space is folded, control characters are written as escapes."""
    folded = " ".join(str(text).split())
    shown = folded if folded.isprintable() else "".join(map(_printable, folded))
    if len(shown) <= LONGEST_LINE:
        return shown
    half = LONGEST_LINE // 2 - len(LEFT_OUT)
    return f"{shown[:half]}{LEFT_OUT}{shown[-half:]}"


def _printable(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


class GracefulError(Exception):
    """Base of the tree: one line for people, `facts` for programs.

    Args:
        message: One line: what, value, where, bound, remedy.
        facts: JSON-serialisable details (step, path, digest ...).
    """

    exit_code: ClassVar[int] = EXIT_BUG

    def __init__(self, message: str, facts: dict[str, object] | None = None) -> None:
        from graceful import redact  # its patterns take milliseconds to compile, and most commands raise nothing

        self.message = one_line(redact.message(message))
        super().__init__(self.message)
        self.facts: dict[str, object] = dict(facts or {})

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[type[GracefulError], tuple[str, dict[str, object]]]:
        return type(self), (self.message, self.facts)


class SpecError(GracefulError):
    """The spec or the command line is wrong; editing it is the remedy."""

    exit_code = EXIT_USAGE


class DataError(GracefulError):
    """The data that the spec names is missing, corrupt, empty or does not join by id."""

    exit_code = EXIT_USAGE


class InfrastructureError(GracefulError):
    """A service or a disk failed; the same command may succeed later."""

    exit_code = EXIT_INFRASTRUCTURE


class RegistryError(InfrastructureError):
    """MLflow is unreachable, refused, or holds something graceful cannot use."""


class StorageError(InfrastructureError):
    """Reading or writing a file or an object failed: disk full, permission, vanished."""


class IntegrityError(InfrastructureError):
    """Bytes do not have the SHA-256 that was recorded for them."""


class TrainingError(GracefulError):
    """Training failed, was stopped, or ran out of time."""

    exit_code = EXIT_TRAINING


class NonFiniteError(TrainingError):
    """Loss or gradient became NaN or infinite; raised before the optimiser step."""


class CollapsedError(TrainingError):
    """Held-out error stayed at chance: the candidate is worthless and is never registered."""
