"""How long a plan takes by the clock: the runner's order played through, each run as long as it is thought to take."""

import heapq
from collections.abc import Callable

from study.presets import WITHOUT_BFLOAT16
from study.tasks import Task, minutes


def wall_seconds(tasks: list[Task], jobs: int, seconds: Callable[[Task], float]) -> float:
    """A run begins when its cores are free and what it starts from is there: a checkpoint of pre-training in
    proportion to its step, what is none of `tasks` at once. As in runner.next_up, a pre-training waits for its place in
    the plan, or until nothing else can."""
    todo, began, made = list(tasks), {}, set(tasks)
    free, now, end = [0.0] * jobs, 0.0, 0.0
    while todo:
        now = max(now, heapq.heappop(free))
        needs = {task: [(parent, file) for parent, file in task.inputs.values() if parent in made] for task in todo}
        at = {task: max([there(*need, began, seconds) for need in needs[task]], default=0.0) for task in todo}
        ready, idle = [t for t in todo if at[t] <= now], all(f <= now for f in free)
        ready = [t for t in ready if t.kind != "pretrain" or t is todo[0]] or ready[: int(idle)]
        beside = heapq.nsmallest(min(ready[0].threads, jobs) - 1, free) if ready else []
        if not ready or max(beside, default=0.0) > now:  # the core waits for a checkpoint, or for another core to end
            heapq.heappush(free, min([t for t in [*at.values(), *free] if t > now]))
            continue
        todo.remove(ready[0])
        began[ready[0]] = now
        end = max(end, now + seconds(ready[0]))
        for core in beside:
            free.remove(core)
        heapq.heapify(free)
        for _ in range(1 + len(beside)):
            heapq.heappush(free, now + seconds(ready[0]))
    return end


def there(parent: Task, file: str, began: dict[Task, float], seconds: Callable[[Task], float]) -> float:
    """When a run has written this file."""
    if parent not in began:
        return float("inf")
    share = int(file[5:11]) / parent.flags["steps"] if file.startswith("ckpt_") else 1.0
    return began[parent] + share * seconds(parent)


def told(tasks: list[Task], jobs: int) -> str:
    """The time of these runs, on two kinds of machine; what else they start from is there."""
    fast = wall_seconds(tasks, jobs, lambda t: t.cost)
    slow = wall_seconds(tasks, jobs, lambda t: t.cost * WITHOUT_BFLOAT16.get(t.script, 1.0))
    return f"about {minutes(fast)} with AVX-512 and bfloat16, {minutes(slow)} with AVX2 and no bfloat16"
