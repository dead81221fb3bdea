"""The command line: `wetread read`, `info`, `pack`, `schema`, `version`."""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    """Entry point: runs a command and turns errors into one clear line and an exit code.

    Exit codes: 0 done; 2 wrong usage; 130 interrupted; others from `wetread.errors.STATUS`. With ``--json``
    the error is a JSON object on standard output. ``WETREAD_DEBUG=1`` shows tracebacks.
    """
    from wetread.cli.app import app
    from wetread.errors import OutputError, WetreadError, status_of

    try:
        app(standalone_mode=True)
    except WetreadError as error:
        if os.environ.get("WETREAD_DEBUG"):
            raise
        if "--json" in sys.argv:
            sys.stdout.write(json.dumps(error.to_json()) + "\n")
        sys.stderr.write(f"wetread: {error.code}: {error}\n")
        sys.exit(status_of(error).exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        sys.stderr.write("wetread: interrupted; nothing was left half-written\n")
        sys.exit(130)
    except MemoryError:
        sys.stderr.write("wetread: MEMORY: this machine has too little memory for the study\n")
        sys.exit(32)
    except OSError as error:
        if os.environ.get("WETREAD_DEBUG"):
            raise
        sys.stderr.write(f"wetread: OUTPUT: {error.strerror or error} [{error.filename or ''}]\n")
        sys.exit(status_of(OutputError("")).exit_code)
    except Exception as error:
        if os.environ.get("WETREAD_DEBUG"):
            raise
        sys.stderr.write(
            f"wetread: INTERNAL: {type(error).__name__}: {error} → this is a defect of wetread; set "
            "WETREAD_DEBUG=1 for the traceback and report it\n"
        )
        sys.exit(1)
