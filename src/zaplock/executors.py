"""Where work that divides is done: here, in processes of this machine, or on a Dask cluster.

The seam is one method: `map(function, items)` gives the results in the order of the items, so that
what is made of them is the same wherever they were computed. A function and its items are values
(they are pickled). A worker that dies is replaced and its items are done again; a function must
therefore do no harm when it is called twice. An error that a function raises is raised here.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from zaplock.errors import UserError
from zaplock.extras import needed

if TYPE_CHECKING:
    from concurrent.futures import Executor as FuturesExecutor

Item = TypeVar("Item")
Result = TypeVar("Result")
_TRIES = 4
"""So many workers may die over the same work; then it is the work that kills them."""
_CONNECT_S = 5
_REPLACED_S = 60
"""So long may a busy machine take to start a worker in the place of one that has died."""
MOST = 256
"""So many processes are worth it on no machine that is known."""


class Executor(Protocol):
    """Something that does work. `workers` says for how many parts it is worth dividing."""

    workers: int

    def map(
        self, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> Iterator[Result]: ...


class Here:
    """One after the other, in this process."""

    workers = 1

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Give each result as it is asked for."""
        return map(function, items)


class Processes:
    """In so many processes of this machine."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Do the items side by side; those of a process that died are done again by another."""
        from concurrent.futures.process import BrokenProcessPool

        from zaplock.workers import pool

        todo, tries = list(items), 0
        while todo:
            try:
                with pool(self.workers, "spawn") as processes:
                    begun = deque(processes.submit(function, item) for item in todo)
                    while begun:
                        result = begun.popleft().result()
                        todo.pop(0)
                        tries = 0
                        yield result
            except BrokenProcessPool:
                tries += 1
                if tries == _TRIES:
                    raise UserError(
                        f"a worker died {_TRIES} times over the same work (out of memory?): "
                        "give fewer --jobs"
                    ) from None


class Cluster:
    """On the workers of a Dask scheduler. Made by `executor`."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.workers = max(1, sum(client.nthreads().values()))

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Do the items on the cluster; the scheduler gives a dead worker's to another."""
        from distributed.scheduler import KilledWorker

        # Not pure: equal items of two calls are two pieces of work, and what files say may change.
        futures = self._client.map(function, items, pure=False, retries=_TRIES)
        try:
            for future in futures:
                yield future.result()
        except KilledWorker as error:
            raise UserError(
                f"workers of the cluster died again and again over the same work ({error}): "
                "give them more memory"
            ) from None
        finally:
            self._client.cancel(futures)

    def objects(
        self, make: Callable[..., Any], processes: Sequence[str], *arguments: Any
    ) -> list[Any]:
        """Make an object on each of some worker processes, of its number there and `arguments`.

        What comes back stands for it: its methods return futures. It ends with the reference.
        """
        begun = [
            self._client.submit(
                make, number, *arguments, actor=True, pure=False,
                workers=[address], allow_other_workers=False,
            )
            for number, address in enumerate(processes)
        ]  # fmt: skip
        return [future.result() for future in begun]

    def processes(self) -> list[str]:
        """Name the worker processes; waits for those that are just being replaced.

        Raises UserError where none comes.
        """
        try:
            self._client.wait_for_workers(1, timeout=_REPLACED_S)
        except TimeoutError:
            raise UserError(
                f"the cluster has had no worker for {_REPLACED_S} s: start 'dask worker'"
            ) from None
        return sorted(self._client.nthreads())

    def each(self, function: Callable[..., Result], *arguments: Any) -> list[Result]:
        """Call a function once in every worker process; the results in the order of their names."""
        told: dict[str, Result] = self._client.run(function, *arguments)
        return [told[name] for name in sorted(told)]

    def futures(self) -> FuturesExecutor:
        """Return what the standard library's `concurrent.futures` calls an executor."""
        made: FuturesExecutor = self._client.get_executor(pure=False, retries=_TRIES)
        return made


@contextlib.contextmanager
def executor(jobs: int = 1, cluster: str = "") -> Iterator[Executor]:
    """Give what does the work: `jobs` processes, or the Dask scheduler at an address.

    Raises UserError where there is no such cluster, both are asked for, or more than `MOST` jobs.
    """
    if jobs < 1:
        raise UserError(f"--jobs {jobs} is less than 1: give how many processes may work")
    if jobs > MOST:
        raise UserError(f"--jobs {jobs} is more than {MOST}: give a smaller number")
    if not cluster:
        yield Here() if jobs == 1 else Processes(jobs)
        return
    with cluster_at(cluster, jobs) as found:
        yield found


@contextlib.contextmanager
def cluster_at(address: str, jobs: int = 1) -> Iterator[Cluster]:
    """Give the cluster of the Dask scheduler at an address.

    Raises UserError where there is none, or `jobs` processes of this machine were asked for, too.
    """
    if jobs > 1:
        raise UserError("--jobs and --cluster are two places to work in: give one of them")
    with needed("--cluster"):
        from distributed import Client
    connect: Callable[..., Any] = Client
    try:
        client = connect(address, timeout=_CONNECT_S)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no Dask scheduler answers at {address!a} ({error}): start one with 'dask scheduler'"
        ) from None
    with client:
        if not client.nthreads():
            raise UserError(f"the cluster at {address!a} has no workers: start 'dask worker'")
        yield Cluster(client)


def divided(items: Sequence[Item], parts: int) -> list[list[Item]]:
    """Cut items into so many parts of nearly equal length, in their order; none is empty.

    >>> divided("abcde", 2)
    [['a', 'b', 'c'], ['d', 'e']]
    """
    parts = max(1, min(parts, len(items)))
    short, longer = divmod(len(items), parts)
    cuts = [short * part + min(part, longer) for part in range(parts + 1)]
    return [list(items[begin:end]) for begin, end in itertools.pairwise(cuts) if begin < end]


def flat(parts: Iterable[Iterable[Item]]) -> list[Item]:
    """Put the results of parts together again."""
    return [one for part in parts for one in part]
