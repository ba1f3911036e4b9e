"""How worker processes begin; the commands of data.prepare start such."""

import multiprocessing
import os
import signal
import threading


def start_method():
    """How workers begin, for ProcessPoolExecutor: as copies of one process that has imported what all need (torch alone
    is 2 seconds and 0.2 GB). Where a system has no such copies, each imports it anew."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data.prepare"])
    return context


def begin_worker() -> None:
    """Leave Ctrl-C to the first process, which ends this one, and end with it when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(parent) -> None:
    parent.join()
    os._exit(1)
