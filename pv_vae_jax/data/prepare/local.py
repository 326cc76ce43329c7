"""Tasks in processes of this machine. A file whose decoding crashes its process is found and left out."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path

from pv_vae_jax.data.listing import NoVideosError, SplitIndex
from pv_vae_jax.data.prepare.encoding import ClipSettings
from pv_vae_jax.data.prepare.tasks import Task, finish, lock_split, plan, run_task, unfinished
from pv_vae_jax.data.readers.records import read_manifest
from pv_vae_jax.data.shards import remove_partial_shards


def prepare_split(
    listing: SplitIndex,
    folder: Path,
    settings: ClipSettings,
    *,
    files: int = 64,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """Make all shards of a split and return the manifest.

    Existing shards are kept; deleted or truncated ones are made again. A file that crashes its process is named and
    left out. Workers end at once when this call ends or its process is killed.

    Args:
      listing: files of the split.
      folder: folder of the shards.
      settings: how videos become clips.
      files: source files of a shard.
      workers: number of processes.
      progress: called with the numbers of finished and of all shards.

    Raises:
      BlockingIOError: another process is preparing this split.
      NoVideosError: as `tasks.plan` and `tasks.finish`.
      RuntimeError: processes die before they begin, as in a script without `if __name__ == "__main__":`.
    """
    with lock_split(folder):
        remove_partial_shards(folder)
        tasks = plan(listing, folder, settings, files=files)
        pending = unfinished(tasks)
        if not pending:
            with contextlib.suppress(NoVideosError):  # missing or damaged: it is written below
                return read_manifest(folder)
        try:
            _run_all(pending, len(tasks), workers, progress)
        finally:
            remove_partial_shards(folder)  # of workers that a file or a signal ended
        return finish(listing, tasks)


def _run_all(tasks: Sequence[Task], total: int, workers: int, progress: Callable[[int, int], None]) -> None:
    """Run tasks in processes. Those running during a crash are retried one by one, to find the file that caused it."""
    pending = {task.index: task for task in tasks}
    crashed: dict[int, list[str]] = {}
    suspects: set[int] = set()
    while pending:
        # One at a time, so that a crash has one cause; the others wait until all of these have run.
        alone = workers == 1 or bool(suspects)
        now = {i: pending[i] for i in suspects} or pending
        progress(total - len(pending), total)
        # Spawned, as a fork would copy the locks of libraries that run threads.
        context = multiprocessing.get_context("spawn")
        listening, alive = context.Pipe(duplex=False)
        processes = concurrent.futures.ProcessPoolExecutor(
            1 if alone else workers, mp_context=context, initializer=_end_with, initargs=(listening,)
        )
        with listening, alive, processes as pool:
            try:
                with _block_ctrl_c():  # processes start here
                    started = {pool.submit(run_task, task, crashed.get(i, ())): i for i, task in now.items()}
                for future in concurrent.futures.as_completed(started):
                    future.result()
                    del pending[started[future]]
                    suspects.discard(started[future])
                    progress(total - len(pending), total)
            except BrokenProcessPool as error:
                pending = {i: task for i, task in pending.items() if not task.done}
                in_hand = {i: at for i, task in pending.items() if (at := task.path.with_suffix(".at")).is_file()}
                if alone and now.keys() & pending and not in_hand:  # no file is the cause, and this would never end
                    raise RuntimeError(
                        "worker processes die before they read a file: "
                        'in a script, put the call of this function below if __name__ == "__main__":'
                    ) from error
                for i, at in in_hand.items():
                    if alone:  # then this file is the cause; of several, each is retried alone
                        crashed.setdefault(i, []).append(os.fsdecode(at.read_bytes()))
                    at.unlink()
                # If none was being decoded, any task shows whether processes start at all.
                suspects = suspects & pending.keys() | in_hand.keys() or set(list(pending)[:1])
            except BaseException:
                alive.close()
                pool.shutdown(wait=True, cancel_futures=True)
                raise


@contextlib.contextmanager
def _block_ctrl_c() -> Iterator[None]:
    """Delay Ctrl-C; processes started meanwhile never see it, where the system has signal masks.

    It reaches every process of a terminal, but the first decides, and the others would each print a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with(listening: Connection) -> None:
    """In a worker: exit as soon as the other end of the pipe is closed, as it is when that process is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # see _block_ctrl_c

    def wait() -> None:
        with contextlib.suppress(EOFError, OSError):
            listening.recv_bytes()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
