"""How long a plan takes by the clock: the runner's order played through, each run as long as it is thought to take."""

import heapq
from collections.abc import Callable

from study.presets import FASTER, WITHOUT_BFLOAT16
from study.tasks import Task, minutes


def wall_seconds(tasks: list[Task], jobs: int, seconds: Callable[[Task], float]) -> float:
    """`seconds`: of a run on one core. A run begins when its cores are free and what it starts from is there: a
    checkpoint of pre-training in proportion to its step, what is none of `tasks` at once. As in runner.next_up, a
    pre-training waits for its place in the plan, or until nothing else can."""
    todo, began, made = list(tasks), {}, set(tasks)
    free, now, end = [0.0] * jobs, 0.0, 0.0
    took = {task: seconds(task) / FASTER[task.cores(jobs)] for task in tasks}
    while todo:
        now = max(now, heapq.heappop(free))
        needs = {task: [(parent, file) for parent, file in task.inputs.values() if parent in made] for task in todo}
        at = {task: max([there(*need, began, took) for need in needs[task]], default=0.0) for task in todo}
        ready, idle = [t for t in todo if at[t] <= now], all(f <= now for f in free)
        ready = [t for t in ready if t.kind != "pretrain" or t is todo[0]] or ready[: int(idle)]
        beside = heapq.nsmallest(ready[0].cores(jobs) - 1, free) if ready else []
        if not ready or max(beside, default=0.0) > now:  # the core waits for a checkpoint, or for another core to end
            heapq.heappush(free, min([t for t in [*at.values(), *free] if t > now]))
            continue
        todo.remove(ready[0])
        began[ready[0]] = now
        end = max(end, now + took[ready[0]])
        free = sorted(free)[len(beside) :] + [now + took[ready[0]]] * (1 + len(beside))
        heapq.heapify(free)
    return end


def there(parent: Task, file: str, began: dict[Task, float], took: dict[Task, float]) -> float:
    """When a run has written this file."""
    if parent not in began:
        return float("inf")
    share = int(file[5:11]) / parent.flags["steps"] if file.startswith("ckpt_") else 1.0
    return began[parent] + share * took[parent]


def told(tasks: list[Task], jobs: int) -> str:
    """The time of these runs, on two kinds of machine; what else they start from is there."""
    fast = wall_seconds(tasks, jobs, lambda t: t.cost)
    slow = wall_seconds(tasks, jobs, lambda t: t.cost * WITHOUT_BFLOAT16.get(t.script, 1.0))
    return f"about {minutes(fast)} with AVX-512 and bfloat16, {minutes(slow)} with AVX2 and no bfloat16"
