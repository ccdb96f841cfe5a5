"""Pictures into the rows of a file, by several processes.

Processes, because threads would spend a third of the time waiting for Python's lock. Those of
`multiprocessing` import the script that was started, and with it torch; these do not.
"""

import contextlib
import json
import os
import sys
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from subprocess import PIPE, Popen

from dataset.decoding import decode_rows
from src.runtime.cli import RunError

_CHUNK = 32


def decode_all(
    file: Path, offset: int, size: int, paths: list[str], workers: int
) -> Generator[tuple[int, dict[int, str]], None, None]:
    """Fill the rows of `file`; yields, in order, how many more are done and which have no picture.

    Args:
        file, offset, size: as for `decode_rows`.
        workers: how many processes; one is this process itself.

    Raises:
        RunError: a process ended early.
        OSError: the file cannot be written.
    """
    starts = range(0, len(paths), _CHUNK)
    if workers == 1:
        with file.open("r+b") as out:
            for start in starts:
                chunk = paths[start : start + _CHUNK]
                yield len(chunk), decode_rows(out, offset, size, start, chunk)
        return
    idle: SimpleQueue[Popen[str]] = SimpleQueue()

    def decode(start: int) -> tuple[int, dict[int, str]]:
        chunk = paths[start : start + _CHUNK]
        worker = idle.get()
        try:
            return len(chunk), _ask(worker, [start, chunk])
        finally:
            idle.put(worker)

    # Left in reverse order: the processes are killed, so no thread waits for them, and cleared up.
    with contextlib.ExitStack() as stack:
        processes = [_start(file, offset, size, stack) for _ in range(min(workers, len(starts)))]
        threads = ThreadPoolExecutor(len(processes))
        stack.callback(threads.shutdown, cancel_futures=True)
        for process in processes:
            stack.callback(process.kill)
            idle.put(process)
        waiting: deque[Future[tuple[int, dict[int, str]]]] = deque()
        for start in starts:
            waiting.append(threads.submit(decode, start))
            if len(waiting) > 2 * len(processes):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _start(file: Path, offset: int, size: int, stack: contextlib.ExitStack) -> "Popen[str]":
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN);"  # this process ends it
        f"from dataset.decoding import serve; serve({str(file.absolute())!a}, {offset}, {size})"
    )
    root = Path(__file__).parents[1]  # where `dataset` is imported from
    process = Popen([sys.executable, "-c", code], cwd=root, stdin=PIPE, stdout=PIPE, text=True)
    stack.callback(process.communicate)  # closes the pipes and waits for its end
    return process


def _ask(worker: "Popen[str]", question: list) -> dict[int, str]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    with contextlib.suppress(OSError):  # it is gone: the answer is empty
        worker.stdin.write(json.dumps(question) + "\n")
        worker.stdin.flush()
    answer = worker.stdout.readline()
    if not answer.endswith("\n"):
        code = worker.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        hint = ", perhaps because memory ran out" if -code == 9 else ""
        raise RunError(f"a process that decodes pictures {how}{hint}: run the same command again")
    content = json.loads(answer)
    if isinstance(content, int):
        raise OSError(content, os.strerror(content))
    return dict(content)
