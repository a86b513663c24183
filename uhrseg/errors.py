"""The errors a user sees: one sentence that names the thing, the rule and the way out.

The command line prints them without a traceback and exits with ``exit_code``. Mistakes of our own stay
ordinary Python exceptions.
"""

from __future__ import annotations

__all__ = ["InputError", "RunError", "UhrsegError"]


class UhrsegError(Exception):
    """Base of every error meant for the user."""

    exit_code = 1


class InputError(UhrsegError, ValueError):
    """A wrong argument or file, or an input that does not fit the model (exit code 2)."""

    exit_code = 2


class RunError(UhrsegError, RuntimeError):
    """Something failed while the work was running: a read, a write, the device (exit code 1)."""

    exit_code = 1
