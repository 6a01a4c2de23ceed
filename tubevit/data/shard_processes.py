"""Writing of shards in several processes of this host."""

import concurrent.futures
import multiprocessing
from collections.abc import Callable, Iterator

from tubevit.data.shard_job import Job, write_shard
from tubevit.data.shard_writer import Write, write_serially
from tubevit.data.warp import use_one_opencv_thread
from tubevit.data.workers import end_with_parent, start_quiet_tracker

_WORKER: dict = {}


def in_processes(count: int) -> Write:
    """Return what writes shards in `count` new processes; 1 uses this process.

    It raises ChildProcessError if a process dies.
    """
    if count == 1:
        return write_serially

    def write(job: Job, todo: list[int], advance: Callable[[int], object]) -> Iterator[tuple[int, dict]]:
        start_quiet_tracker()
        context = multiprocessing.get_context("spawn")
        counter, stop = context.Value("q", 0), context.Event()
        shown = 0
        processes = min(count, len(todo)) or 1
        with concurrent.futures.ProcessPoolExecutor(processes, context, _start_worker, (job, counter, stop)) as pool:
            numbers = {pool.submit(_in_worker, number): number for number in todo}
            waiting = set(numbers)
            try:
                while waiting:
                    done, waiting = concurrent.futures.wait(waiting, timeout=0.2)
                    advance(counter.value - shown)
                    shown = counter.value
                    for future in done:
                        yield numbers[future], future.result()
            except concurrent.futures.process.BrokenProcessPool as error:
                raise ChildProcessError("a process died (out of memory?); the same command resumes") from error
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)

    return write


def _start_worker(job: Job, counter, stop) -> None:
    end_with_parent()
    use_one_opencv_thread()
    _WORKER.update(job=job, order=job.order(), counter=counter, stop=stop)


def _in_worker(number: int) -> dict:
    def progress() -> None:
        with _WORKER["counter"].get_lock():
            _WORKER["counter"].value += 1
        if _WORKER["stop"].is_set():
            raise InterruptedError("stopped")

    return write_shard(_WORKER["job"], number, _WORKER["order"], progress)
