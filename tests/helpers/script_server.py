"""Starts scripts as a person does, without the seconds that importing torch takes each time.

One server for each test process imports the heavy packages and forks. The forked process takes on
the arguments, environment, directory and standard streams of the call and becomes the script. The
streams that the variable CLOSED_STREAMS names are closed, as by `2>&-` in a shell.
"""

import atexit
import contextlib
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

PRELOADED = (
    *("torch", "torch._dynamo", "torchvision", "scipy.optimize", "sklearn.cluster", "tyro"),
    *("sklearn.metrics", "matplotlib.pyplot", "src.training.state", "src.clusters.method"),
    *("src.prediction.predictor", "src.visualization.report"),
)


class ScriptProcess:
    """A running script, with the methods of `subprocess.Popen` that the tests use."""

    def __init__(self, connection: socket.socket, outputs: list[IO[str]]):
        self._connection, self._outputs = connection, outputs
        self._printed: list[str] = []
        self.returncode: int | None = None
        self.pid = int(self._line())

    def poll(self) -> int | None:
        with contextlib.suppress(BlockingIOError):
            self._receive(0)
        return self.returncode

    def wait(self, timeout: float = 240) -> int:
        """Kills the script and raises TimeoutError when it takes longer."""
        try:
            self._receive(timeout)
        except TimeoutError:
            self.kill()
            raise
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        self.wait(timeout)
        return self._printed[0], self._printed[1]

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _receive(self, timeout: float) -> None:
        if self.returncode is not None:
            return
        self._connection.settimeout(timeout)
        self.returncode = int(self._line())
        self._connection.close()
        for output in self._outputs:
            with output:
                output.seek(0)
                self._printed.append(output.read())

    def _line(self) -> str:
        line = b""
        while not line.endswith(b"\n"):
            if not (byte := self._connection.recv(1)):
                raise ConnectionError("the server for scripts has gone")
            line += byte
        return line.decode()


class ScriptServer:
    """The process that imports `preloaded` and forks; `env` is its environment."""

    def __init__(self, env: dict[str, str], preloaded: tuple[str, ...] = PRELOADED) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self._address = str(Path(self._directory.name) / "socket")
        self._process = subprocess.Popen(
            [sys.executable, __file__, self._address, *preloaded], env=env
        )

    def start(
        self, script: str, arguments: list[str], cwd: Path, env: dict[str, str]
    ) -> ScriptProcess:
        connection = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + 240
        while connection.connect_ex(self._address):
            assert time.monotonic() < deadline, "the server for scripts did not start"
            time.sleep(0.05)
        options = {"encoding": "utf-8", "errors": "surrogateescape"}
        outputs = [tempfile.TemporaryFile("w+", **options) for _ in range(2)]  # noqa: SIM115
        call = {"argv": [script, *arguments], "cwd": str(cwd), "env": env}
        fds = [output.fileno() for output in outputs]
        socket.send_fds(connection, [json.dumps(call).encode()], fds)
        return ScriptProcess(connection, outputs)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._directory.cleanup()


def _calls(address: str) -> Iterator[None]:
    """Yields once, in every process that is to become a script."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen()
    while True:
        connection, _ = server.accept()
        if os.fork():
            connection.close()
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        message, fds, _, _ = socket.recv_fds(connection, 1 << 20, 2)
        child = os.fork()
        if child:  # waits for the script and reports its exit code, as Popen's returncode
            connection.sendall(f"{child}\n".encode())
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            with contextlib.suppress(OSError):
                connection.sendall(f"{code}\n".encode())
            os._exit(0)
        server.close()
        connection.close()
        for number, fd in enumerate([os.open(os.devnull, os.O_RDONLY), *fds]):
            os.dup2(fd, number)
            os.close(fd)
        call = json.loads(message)
        os.chdir(call["cwd"])
        os.environ.clear()
        os.environ.update(call["env"])
        encoding, _, errors = call["env"].get("PYTHONIOENCODING", "utf-8").partition(":")
        sys.stdout.reconfigure(encoding=encoding, errors=errors or "strict")  # type: ignore[union-attr]
        sys.stderr.reconfigure(encoding=encoding, errors="backslashreplace")  # type: ignore[union-attr]
        for name in call["env"].get("CLOSED_STREAMS", "").split():
            os.close(getattr(sys, name).fileno())
            setattr(sys, name, None)
        sys.argv = call["argv"]
        yield
        return


def _become(script: str) -> int:
    """Run `script` as the main program and return its exit code."""
    warnings.filterwarnings("error", category=DeprecationWarning, module="__main__")
    sys.path[0] = str(Path(script).parent)
    try:
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    return code


def _end() -> None:
    """After all that a script does at its end, without the second that Python takes to clear its
    memory."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            if stream:
                stream.flush()
    os._exit(exit_code)


if __name__ == "__main__":
    exit_code = 0
    atexit.register(_end)  # the first to be registered is the last to run
    for name in sys.argv[2:]:
        __import__(name)
    gc.freeze()
    for _ in _calls(sys.argv[1]):
        exit_code = _become(sys.argv[0])
