"""Running commands that take long: their output in a log, and no process left behind when one is interrupted."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ENDS_WITH_PARENT = "ALHVR_ENDS_WITH_PARENT"
"""Environment variable of the commands that :func:`run_logged` starts."""


def run_logged(
    command: list[str], log: Path, environment: dict[str, str], meanwhile: Callable[[], None] | None = None
) -> str | None:
    """Run a command to its end, its output in a file.

    Args:
        command: words; the first line of the log shows them.
        log: file, overwritten.
        environment: all variables of the command.
        meanwhile: called several times per second while the command runs.

    Returns:
        None if it succeeded, else the last line that it said, or the signal that ended it.

    Example:
        >>> run_logged(["ls", "/nowhere"], Path("ls.log"), dict(os.environ))
        "ls: cannot access '/nowhere': No such file or directory"
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as file:
        print(f"$ {shlex.join(command)}", file=file, flush=True)
        # in its own session, so that its worker processes can be ended with it
        process = subprocess.Popen(
            command,
            env={**environment, ENDS_WITH_PARENT: "1"},
            stdin=subprocess.PIPE,  # never written to: it closes when this process ends, see end_with_parent
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                if meanwhile:
                    meanwhile()
                time.sleep(0.2)
        finally:
            _end(process)
    if process.returncode < 0:
        return f"ended by {signal.Signals(-process.returncode).name}; the system sends SIGKILL when memory runs out"
    return None if process.returncode == 0 else last_line(log)


def _end(process: subprocess.Popen) -> None:
    """End what is left of a command: itself, and its worker processes even where it is gone."""
    for ending in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, ending)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
    if process.stdin:
        process.stdin.close()


def end_with_parent() -> None:
    """Let this process and its workers end when the one whose :func:`run_logged` started it is gone, even long before.

    It would go on beside the one that takes up its work.
    """

    if not os.environ.pop(ENDS_WITH_PARENT, ""):  # a user may start it by hand
        return

    def watch() -> None:
        os.read(0, 1)  # nothing comes: it returns when the other end is closed
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def interrupted_by(*signals: signal.Signals) -> Iterator[None]:
    """Being ended from outside counts as Ctrl-C, so that the running command ends as well."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    in_main_thread = threading.current_thread() is threading.main_thread()  # others cannot set handlers
    previous = {each: signal.signal(each, interrupt) for each in signals if in_main_thread}
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


def last_line(log: Path) -> str:
    """The last line with anything in it."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "no output")
