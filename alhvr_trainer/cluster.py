"""Work on the machines of a Dask cluster: ``--scheduler ADDRESS`` of the commands that have many independent parts."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from alhvr_trainer.errors import InputError, one_line

_PATIENCE = "15s"
_executor: ContextVar[ClusterExecutor | None] = ContextVar("executor", default=None)


@contextmanager
def scheduler(address: str | None) -> Iterator[None]:
    """While the context is open, parts of the work go to the cluster: see :func:`cluster_executor`.

    Args:
        address: of the scheduler, as "tcp://node1:8786"; None: nothing changes.

    Raises:
        InputError: Dask is not installed, or no scheduler answers.

    Example:
        >>> with scheduler(None):
        ...     print(cluster_executor())
        None
    """
    if address is None:
        yield
        return
    try:
        from distributed import Client
        from distributed.comm import resolve_address
    except ImportError as error:
        raise InputError('"--scheduler" needs Dask: pip install "alhvr-trainer[cluster]"') from error
    try:
        resolve_address(address)  # where it is none, a client says so, too, but half a minute later
        client = Client(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(f"no Dask scheduler answers at {address}: {one_line(error)}") from error
    with client:
        workers = len(client.scheduler_info()["workers"])
        if not workers:
            raise InputError(f"the Dask scheduler at {address} has no workers: start some (dask worker {address})")
        token = _executor.set(ClusterExecutor(client.get_executor(pure=False), workers))
        try:
            yield
        finally:
            _executor.reset(token)


def cluster_executor() -> ClusterExecutor | None:
    """Of the cluster that :func:`scheduler` named; None outside of it."""
    return _executor.get()


def is_cancelled() -> bool:
    """Whether this code runs as a part on a worker, and nobody waits for it: its client was interrupted, or is gone."""
    if "distributed" not in sys.modules:
        return False
    from distributed.worker import get_worker, thread_state

    key = getattr(thread_state, "key", None)
    if key is None:
        return False
    task = get_worker().state.tasks.get(key)
    return task is None or task.state == "cancelled"


class ClusterExecutor(Executor):
    """Gives the workers nnU-Net's variables and the working directory as they are here, so that paths mean the same.

    A part whose worker dies is done again by another; one that ended three workers before is given up.

    Args:
        executor: Dask's.
        workers: of the cluster.
    """

    def __init__(self, executor: Any, workers: int) -> None:
        self._executor = executor
        self.workers = workers

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        from distributed.scheduler import KilledWorker

        super().__exit__(kind, error, trace)
        if isinstance(error, KilledWorker):
            raise InputError(
                "a part of the work was given up, for each worker that had it died, most likely for lack of memory"
            ) from error

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        import cloudpickle

        variables = {name: value for name, value in os.environ.items() if name.startswith("nnUNet_")}
        return self._executor.submit(run, os.getcwd(), variables, cloudpickle.dumps((fn, args, kwargs)))


def run(folder: str, variables: dict[str, str], call: bytes) -> Any:
    """On a worker: the call, in this folder and with these environment variables.

    Args:
        folder: the working directory.
        variables: nnU-Net reads its folders from them when it is imported, so that they come first.
        call: function, arguments and keywords, pickled.
    """
    os.chdir(folder)
    os.environ.update(variables)

    function, args, kwargs = pickle.loads(call)  # what the client sent: whoever reaches the scheduler runs code anyway
    return function(*args, **kwargs)
