"""A stand-in for a model provider: to rehearse an evaluation, and to test, without a key or a bill.

`python -m dspex_pipelines.loopback` serves OpenAI's chat completions on this machine alone, and misbehaves on cue;
`dspex_pipelines.loopback.process.serving` does so for a test.
"""
