"""One writer a folder: a lock file that the system frees with its process, and what the dead have left."""

import errno
import os
import platform
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from data.files import UserError

HELD: list[tuple[Path, IO]] = []  # the locks of this process


def lock(folder: Path) -> None:
    """Make this process the one writer of `folder` until `common.run` ends. The system frees the lock of a process that
    dies, on another host too where the file system is shared; its name is left in the file, and told."""
    path = folder / ".lock"
    while True:
        file = open(path, "a+", encoding="utf-8", errors="replace")
        file.seek(0)
        owner = file.read(200).strip()
        if in_use(file, owner):
            file.close()
            who = owner or "another process"
            raise UserError(f"{folder} is being written by {who}: wait for its end, or give another --out")
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # its owner removed it meanwhile
    if owner:
        print(f"note: {folder} was left by {owner}, which ended without a word; its files are taken over")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()
    HELD.append((path, file))


def in_use(file: IO, owner: str) -> bool:
    """Does a living process hold this lock file? Without file locks (Windows, some network disks) its name must do."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except (OSError, AttributeError):
        pid, _, host = owner.removeprefix("process ").partition(" on ")
        return bool(owner) and (host != platform.node() or not pid.isdecimal() or alive(int(pid)))


def release(path: Path, file: IO) -> None:
    path.unlink(missing_ok=True)
    file.close()


def alive(pid: int) -> bool:
    """Another process of this machine runs under this number. Where that cannot be asked: yes."""
    if pid == os.getpid() or os.name == "nt":
        return pid != os.getpid()
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno != errno.ESRCH
    except OverflowError:
        return False
    return True


def clear_temporaries(folder: Path, name: str = "") -> None:
    """Remove what processes that died in the middle of writing a file of this name (its beginning) left behind."""
    for path in folder.glob(".tmp_*_*"):
        pid, _, target = path.name.removeprefix(".tmp_").partition("_")
        if target.startswith(name) and pid.isdecimal() and not alive(int(pid)):
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    print("Locks of run folders; a stage takes its own: python train_rl.py --help")
