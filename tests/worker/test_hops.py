"""What coroutines hand to threads: there are enough of them, and what takes no time needs none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspy
import pytest

from dspex_pipelines.worker import dspy_patches, hops
from dspex_pipelines.worker.hops import ProgramLoop, is_quick

AT_ONCE = 64


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hops, "_quick", {})


def with_hops(main: Callable[[], Any], *, most: int = AT_ONCE) -> Any:
    with asyncio.Runner(loop_factory=lambda: ProgramLoop(most)) as runner:
        return runner.run(main())


def where(key: str, fails: bool = False) -> int:
    if fails:
        raise OSError(key)
    return threading.get_ident()


def test_what_is_quick_needs_no_thread_once_it_has_been_in_one() -> None:
    is_quick(where, lambda key, *_: key or None)

    async def main() -> None:
        here = threading.get_ident()
        assert await asyncio.to_thread(where, "a") != here
        assert await asyncio.to_thread(where, "a") == here
        assert await asyncio.to_thread(where, "b") != here, "it has something else to load"
        for _ in range(2):
            assert await asyncio.to_thread(where, "") != here, "it is not quick"

    with_hops(main)


def test_what_has_failed_is_not_known_and_errors_come_out() -> None:
    is_quick(where, lambda key, *_: key)

    async def main() -> None:
        here = threading.get_ident()
        with pytest.raises(OSError, match="a"):
            await asyncio.to_thread(where, "a", True)
        assert await asyncio.to_thread(where, "a") != here
        with pytest.raises(OSError, match="a"):
            await asyncio.to_thread(where, "a", True)
        assert await asyncio.to_thread(where, "a") == here

    with_hops(main)


def test_what_is_called_otherwise_than_expected_is_done_in_a_thread() -> None:
    is_quick(where, lambda key, one_more: key)

    async def main() -> None:
        here = threading.get_ident()
        for _ in range(2):
            assert await asyncio.to_thread(where, "a") != here

    with_hops(main)


def test_programs_have_as_many_threads_as_trials_run_at_once() -> None:
    together = threading.Barrier(AT_ONCE)

    async def main() -> list[int]:
        return await asyncio.gather(*(asyncio.to_thread(together.wait, 20) for _ in range(AT_ONCE)))

    assert sorted(with_hops(main)) == list(range(AT_ONCE))


class Says(dspy.BaseLM):
    async def aforward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        return dspy.utils.DummyLM([{"answer": "x"}]).forward(prompt=prompt, messages=messages, **kwargs)


@pytest.mark.parametrize("asked", ["text", "picture"])
def test_a_call_of_text_by_a_model_known_hops_to_no_thread(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dspy_patches._hop_no_more()
    hopped: list[str] = []
    submit = ThreadPoolExecutor.submit

    def noted(self: ThreadPoolExecutor, fn: Any, *args: Any, **kwargs: Any) -> Any:
        hopped.append(fn.args[0].__name__)
        return submit(self, fn, *args, **kwargs)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", noted)
    text = [{"role": "user", "content": "hello"}]
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    model = Says("local/says", cache=False)

    async def main() -> None:
        await model.acall(messages=text)
        assert "prepare" in hopped, "DSPy hops as it is known to here: else there is nothing to be saved any more"
        hopped.clear()
        await model.acall(messages=text if asked == "text" else [{"role": "user", "content": [picture]}])

    with_hops(main)
    assert hopped == ([] if asked == "text" else ["prepare"])
