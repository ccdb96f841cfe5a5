"""Starts scripts as a person does, without the seconds that importing torch takes each time.

One server for each test process imports the heavy packages and forks. The forked process takes on
the arguments, environment, directory and standard streams of the call and becomes the script.
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
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

PRELOADED = ("torch", "torchvision", "scipy.optimize", "sklearn.cluster", "sklearn.metrics",
             "matplotlib.pyplot", "tyro", "torch._dynamo", "src.training.state", "src.clusters.protocol",
             "src.prediction.predictor", "src.visualization.report")  # fmt: skip


class ScriptProcess:
    """A running script, with the interface of `subprocess.Popen` that the tests use."""

    def __init__(self, connection: socket.socket, outputs: tuple[IO[str], IO[str]]):
        self._connection, self._outputs = connection, outputs
        self.returncode: int | None = None
        self.pid = int(self._line())

    def wait(self, timeout: float = 240) -> int:
        """Raises TimeoutError, after which the script has been killed."""
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                self.returncode = int(self._line())
            except TimeoutError:
                self.kill()
                raise
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(BlockingIOError, TimeoutError):
            if self.returncode is None:
                self._connection.settimeout(0)
                self.returncode = int(self._line())
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        self.wait(timeout)
        for output in self._outputs:
            output.seek(0)
        return self._outputs[0].read(), self._outputs[1].read()

    def _line(self) -> str:
        line = b""
        while not line.endswith(b"\n"):
            if not (byte := self._connection.recv(1)):
                raise ConnectionError("the server for scripts has gone")
            line += byte
        return line.decode()


class ScriptServer:
    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self._address = str(Path(self._directory.name) / "socket")
        self._process = subprocess.Popen([sys.executable, __file__, self._address])

    def start(
        self, script: Path, arguments: list[str], cwd: Path, env: dict[str, str], stdin: str = ""
    ) -> ScriptProcess:
        connection = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + 60
        while True:
            try:
                connection.connect(self._address)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                assert time.monotonic() < deadline, "the server for scripts did not start"
                time.sleep(0.05)
        streams = [tempfile.TemporaryFile("w+") for _ in range(3)]
        streams[0].write(stdin)
        streams[0].seek(0)
        call = {"argv": [str(script), *arguments], "cwd": str(cwd), "env": env}
        fds = [stream.fileno() for stream in streams]
        socket.send_fds(connection, [json.dumps(call).encode() + b"\n"], fds)
        return ScriptProcess(connection, (streams[1], streams[2]))

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
        message, fds, _, _ = socket.recv_fds(connection, 1 << 20, 3)
        child = os.fork()
        if child:  # waits for the script and reports its exit code, as Popen's returncode
            connection.sendall(f"{child}\n".encode())
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            with contextlib.suppress(OSError):
                connection.sendall(f"{code}\n".encode())
            os._exit(0)
        server.close()
        connection.close()
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
            os.close(fd)
        call = json.loads(message)
        os.chdir(call["cwd"])
        os.environ.clear()
        os.environ.update(call["env"])
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
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    return code


if __name__ == "__main__":
    for name in PRELOADED:
        __import__(name)
    gc.freeze()
    for _ in _calls(sys.argv[1]):
        code = _become(sys.argv[0])
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)  # without the second that Python takes to clear its memory
