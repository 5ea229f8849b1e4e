"""What is a secret, and what becomes of a text in which one is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from dspex_pipelines import redaction
from dspex_pipelines.engine.calls.trial_calls import Call, TrialCalls
from dspex_pipelines.engine.trace import pack_trace, unpack_trace
from dspex_pipelines.errors import DspexError, InvalidValue, PoolFailed
from dspex_pipelines.model.outcome import ErrorType
from dspex_pipelines.wire.codec import failure_to_wire
from dspex_pipelines.worker.faults import MESSAGE_CHARACTERS, failure_of

KEY = "wjalrXUtnFEMI/K7MDENG+bPxRfiCY"


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process knows is its own, and here each test's."""
    monkeypatch.setattr(redaction, "_SECRETS", redaction.Secrets())
    redaction.learn({"MY_KEY": KEY})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, True) for name in ("OPENAI_API_KEY", "HF_TOKEN", "APIKEY", "aws_secret_access_key", "DB_PASSWORD")),
        *((name, True) for name in ("PGPASSWORD", "BASIC_AUTH", "DB_PWD", "GOOGLE_CREDENTIALS", "MY.SECRET")),
        *((name, True) for name in ("GITHUBTOKEN", "MYAPIKEY", "CLIENTSECRET", "DB1PASSWORD")),
        *((name, False) for name in ("KEYBOARD", "MONKEY", "TOKENIZERS_PARALLELISM", "MAX_TOKENS", "PWD", "OLDPWD")),
        *((name, False) for name in ("SSH_AUTH_SOCK", "HOME", "PATH", "AUTHOR", "SECRETARY")),
    ],
)
def test_a_variable_is_a_secret_by_a_whole_part_of_its_name(name: str, *, expected: bool) -> None:
    assert redaction.is_secret_variable(name) is expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, True) for name in ("api_key", "apiKey", "x-api-key", "openai_api_keys", "Authorization", "password")),
        *((name, True) for name in ("client_secret", "access_token", "aws_access_key_id")),
        *((name, False) for name in ("sort_key", "key", "token", "max_tokens", "api_key_env", "keys", "password_file")),
    ],
)
def test_an_argument_is_a_secret_by_fewer_names(name: str, *, expected: bool) -> None:
    assert redaction.is_secret_field(name) is expected


def test_secrets_of_an_environment() -> None:
    environment = {
        "A_KEY": "longenough",
        "SHORT_KEY": "1234567",
        "PATH_TO_KEY": sys.executable,
        "HARMLESS": "nothing at all",
        "LISTED": "by its name alone",
        "SORT_KEY": "relevance",
        "DATABASE": "postgresql+psycopg://me:p%40ssword1@host/name",
        "PROXY": "http://proxy:3128",
        redaction.LISTED: "LISTED, ABSENT",
        redaction.EXEMPT: "SORT_KEY",
    }
    expected = {"A_KEY": "longenough", "LISTED": "by its name alone", "DATABASE": "p@ssword1"}
    assert redaction.secrets_of(environment) == expected, "and not the lists themselves"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(f"a {KEY} b", "a [redacted MY_KEY] b", id="itself"),
        pytest.param(
            f"?key={KEY.replace('/', '%2F').replace('+', '%2B')}&b", "?key=[redacted MY_KEY]&b", id="in-a-url"
        ),
        pytest.param("Authorization: Bearer abcdefgh12345", "Authorization: Bearer [redacted]", id="header"),
        pytest.param("{'x-api-key': 'abcdefgh12345'}", "{'x-api-key': '[redacted]'}", id="header-in-a-map"),
        pytest.param("sent bearer abcdefgh12345678", "sent bearer [redacted]", id="bearer"),
        pytest.param("key sk-proj-abcdefgh1234567890.", "key [redacted].", id="a-key-by-its-form"),
        pytest.param("postgresql://me:hunter2@host/x", "postgresql://me:***@host/x", id="password-in-a-url"),
        pytest.param("task-force risk-free https://example.org:80/a@b", None, id="nothing"),
        pytest.param("the key is missing; give an api_key", None, id="talk-of-keys"),
    ],
)
def test_a_text_without_its_secrets(text: str, expected: str | None) -> None:
    clean = redaction.redact(text)
    assert clean == (text if expected is None else expected)
    assert redaction.redact(clean) == clean, "it can be done again"


def test_secrets_are_found_as_code_json_and_lines_have_them() -> None:
    redaction.learn(
        {
            "ODD_KEY": 'quo"te\\back\u00e9slash',
            "PEM_KEY": "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG\n-----END KEY-----",
        }
    )
    for written in ('quo\\"te\\\\back\\u00e9slash', 'quo"te\\\\back\u00e9slash', 'quo"te\\back\u00e9slash'):
        assert redaction.redact(f"({written})") == "([redacted ODD_KEY])"
    assert redaction.redact("line MIIEvQIBADANBgkqhkiG\n") == "line [redacted PEM_KEY]\n"
    assert redaction.redact("-----BEGIN KEY-----") == "-----BEGIN KEY-----"


def test_values_are_touched_only_where_a_secret_is() -> None:
    value = {"a": [1, 2.5, None, True, b"raw", "text", ("Bearer abcdefgh12345678",)], 7: "sk-abcdefgh1234567890abcd"}
    assert redaction.redact_values(value) == {**value, "a": [*value["a"][:6], ["Bearer abcdefgh12345678"]]}  # type: ignore[index]
    told = {KEY: f"x{KEY}", "bytes": b"\xff" + KEY.encode()}
    expected = {"[redacted MY_KEY]": "x[redacted MY_KEY]", "bytes": b"\xff[redacted MY_KEY]"}
    assert redaction.redact_values(told) == expected


@pytest.mark.parametrize("before", range(MESSAGE_CHARACTERS - len(KEY) - 20, MESSAGE_CHARACTERS + 2))
def test_no_piece_of_a_secret_is_left_where_a_message_is_cut(before: int) -> None:
    failure = failure_of(ErrorType.PROGRAM_EXCEPTION, RuntimeError("." * before + KEY + "." * 50_000))
    assert KEY[:4] not in failure.message + failure.traceback
    repeated = redaction.redact_beginning(KEY * 1_000, MESSAGE_CHARACTERS)
    assert len(repeated) <= MESSAGE_CHARACTERS
    assert KEY[:4] not in repeated


def test_no_piece_of_a_secret_is_left_in_a_trace_that_is_cut() -> None:
    calls = TrialCalls(None)
    noise = os.urandom(150_000).hex()
    calls.add(
        Call(f"model-{KEY}", asked=[{"content": noise + KEY + noise, "api_key": "from a vault"}], answered=KEY * 20)
    )
    calls.add(Call("m", settings={"extra_headers": {"Authorization": "Bearer 12345678"}, "temperature": 0.5}))
    for most in (1_000_000, 2_000, 300):
        document = unpack_trace(pack_trace(calls, most))
        assert KEY[:4] not in repr({**document, "calls": [{**one, "model": ""} for one in document["calls"]]})
        assert "vault" not in repr(document)
        assert "12345678" not in repr(document)


def test_errors_of_ours_have_none() -> None:
    assert str(DspexError(f"so: {KEY}")) == "so: [redacted MY_KEY]"
    assert KEY not in str(PoolFailed(address="unix:/x", reason=KEY))
    assert KEY[:4] not in str(InvalidValue(field="x", value="." * 60 + KEY, fix="y"))
    assert KEY not in failure_to_wire(ErrorType.SERIALIZATION, KEY, traceback=KEY).SerializeToString().decode("latin-1")


def test_fingerprints_do_not_depend_on_a_secret() -> None:
    redaction.learn({"OTHER": "another-secret-value"})

    def fingerprint(said: str) -> str:
        return failure_of(ErrorType.PROGRAM_EXCEPTION, RuntimeError(said)).fingerprint

    assert fingerprint(KEY) != fingerprint("another-secret-value")
    assert fingerprint(KEY) == fingerprint("[redacted MY_KEY]")


def test_a_secret_that_leaves_the_environment_is_still_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "here-for-a-while")
    redaction.learn_environment()
    monkeypatch.delenv("SOME_TOKEN")
    redaction.learn_environment()
    assert redaction.redact("here-for-a-while") == "[redacted SOME_TOKEN]"


def test_a_variable_that_goes_while_the_environment_is_looked_at_costs_nothing() -> None:
    class Going(dict[str, str]):
        def __iter__(self) -> Iterator[str]:
            names = list(super().__iter__())
            self.pop("GOING_TOKEN", None)
            return iter(names)

    redaction.learn_environment(Going(GOING_TOKEN="gone-by-then", OTHER_TOKEN="still-there-then"))
    assert redaction.redact("gone-by-then still-there-then") == "gone-by-then [redacted OTHER_TOKEN]"


SCRIBBLES = """
import os, signal, subprocess, sys
from dspex_pipelines import redaction
from dspex_pipelines.wire.scribe import Scribe
scribe = Scribe.start(apart=APART)
key = os.environ["MY_KEY"]
print("out", key, flush=True)
print("error", key, file=sys.stderr)
subprocess.run(["sh", "-c", "echo shell $MY_KEY"])
os.write(1, b"x" * 200_000 + key.encode() + b"y" * 200_000 + b"\\n")
redaction.learn({"LATER": "later-known-secret"})
print("later-known-secret", flush=True)
os.write(1, b"\\xff not text " + key.encode())
END
"""


@pytest.mark.parametrize("end", ["scribe.end()", "os.kill(os.getpid(), signal.SIGKILL)", "os._exit(3)"])
@pytest.mark.parametrize("apart", [True, False])
def test_a_scribe_writes_all_there_was_without_secrets(end: str, *, apart: bool) -> None:
    script = SCRIBBLES.replace("END", end).replace("APART", str(apart))
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "MY_KEY": KEY}, capture_output=True, timeout=60, check=False
    )
    out, error = done.stdout, done.stderr
    assert (out == b"") is not apart
    written = out + error
    assert KEY[:4].encode() not in written
    for line in (b"out [redacted MY_KEY]\n", b"error [redacted MY_KEY]\n", b"shell [redacted MY_KEY]\n"):
        assert line in written
    assert b"x" * 200_000 + b"[redacted MY_KEY]" + b"y" * 200_000 + b"\n" in written
    assert b"[redacted LATER]\n\xff not text [redacted MY_KEY]" in written


def test_no_piece_of_a_secret_is_left_where_a_traceback_is_cut() -> None:
    for before in range(7_700, 8_000, 10):
        failure = failure_of(ErrorType.PROGRAM_EXCEPTION, RuntimeError("." * before + KEY + "." * 50_000))
        assert KEY[:4] not in failure.traceback
