"""`python ...` for tests, forked from a server that has imported torch and what its optimizers import: those imports
are five of the six seconds that a small stage takes. The script is executed as __main__ all the same."""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROCESSES = multiprocessing.get_context("forkserver")


def start_server() -> None:
    """A process has one such server: it begins here, before data.prepare would start it with modules of ours, some of
    which read the environment."""
    PROCESSES.set_forkserver_preload(["torch", "torch._dynamo"])
    forkserver.ensure_running()


def become(command: list[str], cwd: Path, env: dict, *streams: Connection) -> None:
    """In the new process: its streams, environment, folder and arguments; then the script, or the module after -m."""
    for number, stream in enumerate(streams):
        os.dup2(stream.fileno(), number)
        stream.close()
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)
    sys.stderr = open(2, "w", closefd=False, errors="backslashreplace", buffering=1)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if command[0] == "-m":
            sys.path.insert(0, str(cwd))
            sys.argv = command[1:]
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(command[0]).resolve().parent))
            sys.argv = command
            runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing ends a process without them


class Started:
    """What subprocess.Popen(text=True) with pipes for stdout and stderr is."""

    def __init__(self, command: list, cwd: Path = ROOT, env: dict | None = None):
        (out, their_out), (err, their_err) = os.pipe(), os.pipe()
        theirs = [Connection(fd) for fd in (os.open(os.devnull, os.O_RDWR), their_out, their_err)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"} if env is None else env
        arguments = ([str(word) for word in command], Path(cwd), environment, *theirs)
        self.process = PROCESSES.Process(target=become, args=arguments)
        self.process.start()
        for connection in theirs:
            connection.close()
        self.pid, self.texts = self.process.pid, {}
        self.readers = [threading.Thread(target=self.read, args=(fd,)) for fd in (out, err)]
        self.order = (out, err)
        for reader in self.readers:
            reader.start()

    def read(self, fd: int) -> None:
        with open(fd, encoding="utf-8", errors="replace") as stream:
            self.texts[fd] = stream.read()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise subprocess.TimeoutExpired("forked", timeout)
        for reader in self.readers:
            reader.join()
        return self.texts[self.order[0]], self.texts[self.order[1]]


def run(command: list, **settings) -> subprocess.CompletedProcess:
    """As subprocess.run([sys.executable, *command], capture_output=True, text=True), from the project's folder."""
    started = Started(command, **settings)
    out, err = started.communicate()
    return subprocess.CompletedProcess(command, started.returncode, out, err)
