"""Other systems run trials that do nothing: `python _peers.py NAME COUNT` prints how many they do in a second.

Each answers COUNT inputs and scores the answers, in the way its own documentation begins with. It knows nothing of this
package, so that it runs in an environment of the peer's own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

THREADS = 16
CORES = 2


def dspy_evaluate(count: int) -> float:
    """`dspy.Evaluate` with its threads."""
    import dspy

    class Answers(dspy.Module):
        def forward(self, x: int) -> dspy.Prediction:
            return dspy.Prediction(y=x + 1)

    def same(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
        del example, trace
        return prediction.y >= 0

    examples = [dspy.Example(x=number).with_inputs("x") for number in range(count)]
    evaluate = dspy.Evaluate(
        devset=examples, metric=same, num_threads=THREADS, display_progress=False, display_table=False
    )
    started = time.perf_counter()
    result = evaluate(Answers())
    seconds = time.perf_counter() - started
    if result.score != 100:
        raise RuntimeError(f"dspy.Evaluate scored {result.score}")
    return count / seconds


def ray_tasks(count: int) -> float:
    """A Ray task for each trial."""
    import ray  # pyright: ignore[reportMissingImports] - in an environment of its own

    ray.init(num_cpus=CORES, include_dashboard=False, log_to_driver=False, logging_level="ERROR")

    @ray.remote
    def answer(x: int) -> bool:
        return x + 1 >= 0

    ray.get([answer.remote(number) for number in range(100)])
    started = time.perf_counter()
    right = ray.get([answer.remote(number) for number in range(count)])
    seconds = time.perf_counter() - started
    ray.shutdown()
    if not all(right):
        raise RuntimeError("a task of Ray's was wrong")
    return count / seconds


RUN: dict[str, Callable[[int], float]] = {"dspy.Evaluate": dspy_evaluate, "Ray tasks": ray_tasks}

if __name__ == "__main__":
    print(RUN[sys.argv[1]](int(sys.argv[2])), flush=True)
