"""Many processes by torchrun: which share of a step's work this one does, and what it hears of the others.

`torchrun --nproc-per-node N train_rl.py ...` starts N processes of one command. Each holds the whole model and takes
every N-th piece of the work (`deal`): rows, micro-batches, questions. Draws, denominators, advantages and mini-batches
are those of the whole step, and gradients are summed: N changes memory and speed, the result only by rounding. AdamW's
moments are shared out (ZeRO-1, Rajbhandari et al. 2020). The first process alone prints and writes. In a single process
every function here hands back what it was given, and torch.distributed is never begun.
"""

import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist

from data.files import UserError

RANK, PROCESSES = 0, 1  # the number of this process, and how many there are
if "RANK" in os.environ:  # by torchrun
    RANK, PROCESSES = int(os.environ["RANK"]), int(os.environ.get("WORLD_SIZE", 1))
PATIENCE = timedelta(days=1)  # with a process that lives: one may sample long after all others have done
PULSE, SILENCE = 5.0, 45.0  # seconds between two signs of life, and without one until a process counts as dead
ARRIVAL = 600.0  # seconds until its first sign: a machine may be slow to import torch
DONE = 1 << 40  # added to the signs of a process whose work is done
STORE, OVER = None, threading.Event()  # where the processes meet; set when this one leaves


# -------------------------------------------------------------------------------------------------- meeting and parting
@contextmanager
def joined() -> Iterator[None]:
    """A block in which the processes work together. What lies on a GPU travels by NCCL, everything else by gloo."""
    global STORE
    if PROCESSES == 1:
        yield
        return
    try:
        STORE = next(dist.rendezvous("env://"))[0]
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{PROCESSES} processes did not meet ({error}); start them with torchrun") from error
    watcher = threading.Thread(target=watch, args=(STORE.clone(),), daemon=True)
    watcher.start()
    try:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=STORE, rank=RANK, world_size=PROCESSES, timeout=PATIENCE)
        gather([])  # the connections stand
        yield
        with suppress(RuntimeError):  # without torchrun the store ends with the first process
            STORE.add(f"signs of {RANK}", DONE)
        dist.destroy_process_group()
    finally:
        OVER.set()
        watcher.join(PULSE)


def watch(store) -> None:
    """Give signs of life, and end this process if another gives none: to wait for a dead one is to wait for ever."""
    last = dict.fromkeys(range(PROCESSES), (0, time.monotonic()))  # signs of each so far, and when the last one came
    while not OVER.wait(PULSE):
        try:
            store.add(f"signs of {RANK}", 1)
            signs = {rank: store.add(f"signs of {rank}", 0) for rank in range(PROCESSES)}
        except RuntimeError:  # the machine of the first process is gone
            signs = {}
        now = time.monotonic()
        last |= {rank: (count, now) for rank, count in signs.items() if count != last[rank][0]}
        bounds = {rank: math.inf if n >= DONE else SILENCE if n else ARRIVAL for rank, (n, _) in last.items()}
        silent = [rank for rank, (_, since) in last.items() if now - since > bounds[rank]]
        if silent and not OVER.is_set():
            if speaks(store):
                print(f"error: {lost(f'process {silent[0]} of {PROCESSES}')}", file=sys.stderr, flush=True)
            os._exit(2)


def speaks(store=None) -> bool:
    """May this process say why the run ends? Only the first that asks: it failed on its own, the others with it."""
    if not (store := store or STORE):
        return RANK == 0
    try:
        return store.add("told", 1) == 1
    except RuntimeError:
        return True


def lost(who: str = "a process of this run") -> str:
    return f"{who} no longer answers, so all end; files written before are whole: find what ended it, then --resume"


def is_lost(error: BaseException) -> bool:
    """Did a collective fail as it does when another process has ended? Other errors of gloo and NCCL are faults to be
    read."""
    signs = ("by peer", "Broken pipe", "pair closure", "remote process exited")
    told = isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    return PROCESSES > 1 and (told or isinstance(error, dist.DistNetworkError | dist.DistStoreError))


def own_device(name: str) -> str:
    """`--device` of this process: of "cuda" the GPU that is its own."""
    if PROCESSES == 1 or not name.startswith("cuda"):
        return name
    here, found = int(os.environ.get("LOCAL_WORLD_SIZE", PROCESSES)), torch.cuda.device_count()
    if name != "cuda":
        raise UserError(f"--device {name} for {PROCESSES} processes: each takes a GPU of its own; give --device cuda")
    if here > found:
        raise UserError(f"torchrun began {here} processes on a machine of {found} GPUs; lower --nproc-per-node")
    return f"cuda:{os.environ['LOCAL_RANK']}"


# ----------------------------------------------------------------------------------------------------- work and results
def deal(work):
    """This process's share of a list, range or tensor: every PROCESSES-th piece."""
    return work[RANK::PROCESSES]


def gather(mine: list) -> list:
    """The lists of all processes as one, in the order in which `deal` dealt the work. All processes call it."""
    if PROCESSES == 1:
        return mine
    parts: list = [None] * PROCESSES
    dist.all_gather_object(parts, mine)
    return [parts[i % PROCESSES][i // PROCESSES] for i in range(sum(map(len, parts)))]


def together(mine: dict) -> dict:
    """Numbers of all processes added up; of a name that ends in _min or _max the least or the greatest."""
    if PROCESSES == 1:
        return mine
    folds = {name: min if name.endswith("_min") else max if name.endswith("_max") else sum for name in mine}
    everyone = gather([mine])
    return {name: fold([one[name] for one in everyone]) for name, fold in folds.items()}


def agree(value, what: str) -> None:
    """UserError unless all processes have the same value."""
    if any(other != value for other in gather([value])):
        raise UserError(f"the processes have different {what}: every machine must see the same files; share the folder")


def sum_gradients(model) -> None:
    if PROCESSES > 1:
        for sent in [dist.all_reduce(p.grad, async_op=True) for p in model.parameters()]:
            sent.wait()


def optimizer_state(optimizer) -> dict:
    """AdamW's state_dict. Of many processes: in the first one that of all weights, on the CPU, in the others a part.
    (ZeroRedundancyOptimizer's own way turns it into a list of bytes: two minutes a GB.)"""
    if PROCESSES == 1:
        return optimizer.state_dict()
    own = optimizer.optim.state
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    places = gather([[i for i, p in enumerate(weights) if p in own]])
    owner = {i: rank for rank, part in enumerate(places) for i in part}
    whole = torch.optim.Optimizer.state_dict(optimizer)
    whole["state"] = {i: {} for i in sorted(owner)}
    for i, moments in whole["state"].items():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            if owner[i] == RANK:
                moments[key] = own[weights[i]][key].cpu()
                if RANK:
                    dist.send(moments.pop(key), 0)
            elif RANK == 0:
                moments[key] = torch.empty(() if key == "step" else weights[i].shape)
                dist.recv(moments[key], owner[i])
    return whole


if __name__ == "__main__":
    print("The stages in many processes: torchrun --nproc-per-node 2 train_rl.py --help")
