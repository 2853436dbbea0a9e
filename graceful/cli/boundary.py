"""Turn exceptions into one line on stderr and an exit code, without a traceback. Runs on the client."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from graceful import environment, startup
from graceful.errors import EXIT_BUG, EXIT_INTERRUPTED, EXIT_PIPE_CLOSED, EXIT_USAGE, GracefulError, one_line


def guarded(command: click.Command, arguments: Sequence[str] | None = None) -> int:
    """Run a click command; whatever it raises becomes one line on stderr and an exit code."""
    try:
        environment.clean()
        code = command.main(
            args=None if arguments is None else list(arguments), prog_name="graceful", standalone_mode=False
        )
        sys.stdout.flush()
    except GracefulError as e:
        return _say(e.message, e.exit_code)
    except click.ClickException as e:
        return _say(_usage(e), EXIT_USAGE)
    except (KeyboardInterrupt, click.exceptions.Abort):
        return _say("interrupted; run the same command again to come back to where it was", EXIT_INTERRUPTED)
    except BrokenPipeError:
        startup.silence_stdout()
        return EXIT_PIPE_CLOSED
    except Exception as e:  # noqa: BLE001  # the last line of defence: a bug of ours becomes one line and a file
        from graceful import crash

        return _say(crash.line(e), EXIT_BUG)
    return code if isinstance(code, int) else 0


def _say(message: str, code: int) -> int:
    sys.stderr.write(f"graceful: {message}\n")
    return code


def _usage(error: click.ClickException) -> str:
    from graceful import redact

    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "graceful"
    message = redact.message(one_line(error.format_message()).rstrip("."))
    return f"{message[:1].lower()}{message[1:]}; see `{path} --help`"
