"""Programs that tell their key in every way they can. It is copied into a folder of its own to be evaluated there."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import dspy

from dspex_pipelines import Dataset, Evaluation, call_model, report_usage

KEY = os.environ["CANARY_API_KEY"]
FROM_DAGSTER = os.environ.get("CANARY_GIVEN_KEY", "")
MARK = os.environ["CANARY_MARK"]
TOLD = f"{MARK} {KEY} {FROM_DAGSTER}"
SERVER = os.environ["CANARY_SERVER"]
REFUSING = os.environ["CANARY_REFUSING"]
# As a program does that reads a file of keys when it is imported.
os.environ["CANARY_LATE_TOKEN"] = Path("late").read_text()
LATE = os.environ["CANARY_LATE_TOKEN"]


def leak(way: str) -> object:
    return WAYS[way]()


def raises() -> None:
    error = RuntimeError(f"{TOLD} {LATE}")
    error.add_note(f"a note: {TOLD}")
    raise error from ValueError(f"its cause: {TOLD}")


def raises_at_the_cut() -> None:
    raise RuntimeError("." * (4_000 - len("RuntimeError: ") - 10) + TOLD.partition(" ")[2] + MARK)


def raises_long() -> None:
    raise RuntimeError("." * 8_000 + KEY * 2 + "." * 12_000)


def raises_by_name() -> None:
    raise type(f"{MARK}{KEY}", (Exception,), {})


def raises_group() -> None:
    raise ExceptionGroup(TOLD, [ValueError(TOLD), LookupError(LATE)])


def returns() -> dict[str, object]:
    return {"said": TOLD, KEY: [LATE, {"deep": f"Bearer {KEY}"}], "bytes": KEY.encode(), "mark": MARK}


def returns_what_cannot_be_sent() -> dict[str, object]:
    return {f"{MARK}{KEY}": object()}


def uses() -> str:
    report_usage(**{f"{MARK}{KEY}": 1.0})
    return MARK


def prints() -> str:
    print(f"printed {TOLD} {LATE}", flush=True)
    print(f"printed {TOLD} {LATE}", file=sys.stderr)
    logging.getLogger("leaks").warning("logged %s", TOLD)
    os.write(2, f"written {TOLD}\n".encode())
    os.write(1, b"in " + KEY[:10].encode())
    os.write(1, KEY[10:].encode() + b" two pieces\n")
    subprocess.run(["sh", "-c", 'echo "said by another $CANARY_API_KEY"'], check=True)
    return MARK


def kills() -> None:
    print(f"last words {TOLD}", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def retries() -> str:
    tries: list[int] = []

    def make() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError(f"try {len(tries)}: {TOLD}")
        return MARK

    return call_model(f"model-{MARK}-{KEY}", make)


def asks() -> object:
    """A key that the environment does not have is known once a model is asked with it."""
    model = dspy.LM(
        "openai/gpt-4o-mini",
        api_base=SERVER,
        api_key=KEY,
        cache=False,
        extra_headers={"X-Api-Key": KEY, "X-Mark": MARK},
    )
    with dspy.context(lm=model):
        said = dspy.Predict("question -> answer")(question=f"{TOLD} {LATE}")
    return {"answer": said.answer, "kwargs": model.kwargs, "state": model.dump_state(), "repr": repr(model)}


def is_refused() -> object:
    model = dspy.LM("openai/gpt-4o-mini", api_base=REFUSING, api_key=KEY, cache=False)
    with dspy.context(lm=model):
        return dspy.Predict("question -> answer")(question=MARK)


WAYS = {
    one.__name__: one
    for one in (
        *(raises, raises_at_the_cut, raises_long, raises_by_name, raises_group, returns, returns_what_cannot_be_sent),
        *(uses, prints, kills, retries, asks, is_refused),
    )
}
HERE = ("metric_raises", "metric_names")


def told(example: object, outputs: object) -> object:
    way = example.inputs["way"]  # type: ignore[attr-defined]
    if way == "metric_raises":
        raise LookupError(TOLD)
    return {"plain": 1, **({f"{MARK}{KEY}": 1} if way == "metric_names" else {})}


for _way in HERE:
    WAYS[_way] = lambda: MARK


def ways(*names: str) -> Dataset:
    return Dataset(source=lambda: [{"way": name} for name in names], inputs=("way",), example_id="way")


def unreadable() -> list[dict[str, str]]:
    raise RuntimeError(f"the rows: {TOLD}") from LookupError(TOLD)


def _evaluation(name: str, dataset: Dataset, **more: object) -> Evaluation:
    how = {"program": "leaks:leak", "metrics": ("leaks:told",), "score_range": (0, 2), **more}
    return Evaluation(name=name, dataset=dataset, **how)  # type: ignore[arg-type]


SHARED = _evaluation("shared", ways(*(set(WAYS) - {"is_refused"})))
ALONE = _evaluation(
    "alone", ways("raises", "returns", "prints", "kills", "retries"), isolation="process", version="alone"
)
REFUSED = _evaluation("refused", ways("is_refused"))
UNREAD = _evaluation("unread", Dataset(source=unreadable, inputs=("way",)))
BROKEN = _evaluation("broken", ways("raises"), program="broken:leak")
