"""Language models that answer here: with the settings that they were asked with, or by what they are asked."""

from __future__ import annotations

import asyncio
import json

import dspy
from dspy.lm15 import Message, RateLimitError, Response, TextPart, Usage


def answered(**fields: object) -> str:
    """What a model says in the form of DSPy's chat adapter."""
    return "".join(f"[[ ## {name} ## ]]\n{value}\n\n" for name, value in fields.items()) + "[[ ## completed ## ]]\n"


class Echo:
    """Answers with the settings that it was asked with, as JSON."""

    asked = 0
    refusals = 0

    def complete(self, request):
        Echo.asked += 1
        if Echo.refusals > 0:
            Echo.refusals -= 1
            raise RateLimitError("slow down", status=429)
        config = request.config
        said = {"model": request.model, "temperature": config.temperature, "max_tokens": config.max_tokens}
        said["shots"] = sum(message.role == "assistant" for message in request.messages)
        system = request.system if isinstance(request.system, str) else ""
        said["system"] = system.rpartition("your objective is:")[2].strip()
        text = answered(reasoning="so", answer=json.dumps(said))
        return Response(
            id=None,
            model=request.model,
            message=Message.assistant([TextPart(text)]),
            finish_reason="stop",
            usage=Usage(input_tokens=10, output_tokens=5, total_tokens=15),
        )


class EchoLater:
    async def complete(self, request):
        await asyncio.sleep(0)
        return Echo().complete(request)


def echo(model: str = "local/echo", **settings: object) -> dspy.LM:
    return dspy.LM(model, engine=Echo(), async_engine=EchoLater(), **{"cache": False, **settings})


class OldModel(dspy.BaseLM):
    """As custom models were written: `forward` alone."""

    def forward(self, prompt=None, messages=None, **kwargs):
        said = json.dumps({"model": self.model, "temperature": {**self.kwargs, **kwargs}.get("temperature")})
        return _completion(self.model, answered(answer=said))

    async def aforward(self, prompt=None, messages=None, **kwargs):
        return self.forward(prompt=prompt, messages=messages, **kwargs)


class OlderModel(dspy.BaseLM):
    """As they were written before: `__call__` alone."""

    def __call__(self, prompt=None, messages=None, **kwargs):
        return [answered(answer="older")]


class Record(dict):
    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def _completion(model, text):
    message = Record(content=text, tool_calls=None, reasoning_content=None, provider_specific_fields=None)
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    return Record(choices=[Record(message=message, finish_reason="stop", logprobs=None)], usage=usage, model=model)


class Counting:
    """Answers by what it is asked, right in some cases."""

    def complete(self, request):
        asked = request.messages[-1].text or ""
        number = int(asked.partition("What is ")[2].split(" ", maxsplit=1)[0])
        text = answered(answer=f"number {number % 7 if number % 3 else number % 5}")
        usage = Usage(input_tokens=1, output_tokens=1, total_tokens=2)
        message = Message.assistant([TextPart(text)])
        return Response(id=None, model=request.model, message=message, finish_reason="stop", usage=usage)
