"""The server as its clients see it: over HTTP, from another process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import urllib.error

import httpx
import psutil
import pytest

from dspex_pipelines.loopback.process import serving

DIES = """
import os, signal
from dspex_pipelines.loopback.process import serving
with serving() as server:
    print(server.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_answer_has_what_clients_look_for(ask, server):
    answer = ask("Hello there", n=2).raise_for_status().json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "gpt-4o-mini"
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert len(set(texts)) == 2
    words = sum(len(text.split()) for text in texts)
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": words, "total_tokens": 2 + words}
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"stop"}
    assert server.stats()["answered"] == 1


def test_the_same_request_has_the_same_answer_in_any_process(ask):
    questions = [("a", {}), ("a", {"seed": 1}), ("a", {"temperature": 0.5}), ("a", {"model": "other"}), ("b", {})]
    here = [ask(text, **changed).content for text, changed in questions]
    with serving() as other:
        there = [
            httpx.post(
                f"{other.base_url}/chat/completions",
                json={"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}], **changed},
                trust_env=False,
            ).content
            for text, changed in questions
        ]
    assert here == there
    assert len(set(here)) == len(questions)


def test_the_path_may_leave_out_the_version_and_parts_are_one_text(ask, client, server):
    whole = ask("one\ntwo")
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": parts}]}
    url = f"{server.base_url.removesuffix('/v1')}/chat/completions"
    assert client.post(url, json=body).content == whole.content


def test_an_answer_longer_than_asked_for_is_cut_and_says_so(ask):
    whole = ask().json()["choices"][0]["message"]["content"]
    (choice,) = ask(max_tokens=2).json()["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] == " ".join(whole.split()[:2])


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        pytest.param({"stream": True}, "stream", id="stream"),
        pytest.param({"model": None}, "model", id="no-model"),
        pytest.param({"messages": []}, "messages", id="no-messages"),
        pytest.param({"messages": ["text"]}, "messages", id="message-is-no-object"),
        pytest.param({"temperature": 3}, "temperature", id="too-hot"),
        pytest.param({"n": 0}, "n", id="none"),
        pytest.param({"max_tokens": "many"}, "max_tokens", id="tokens-are-no-number"),
    ],
)
def test_a_bad_request_is_told_which_parameter(ask, server, changed, param):
    response = ask(**changed)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert server.stats()["errors"] == {"bad_request": 1}


def test_what_is_no_json_is_a_bad_request_and_what_is_nowhere_is_not_found(client):
    assert client.post("/chat/completions", content=b"{").status_code == 400
    assert client.get("/nothing").status_code == 404


def test_another_key_is_refused_and_not_repeated(client, server):
    for headers in ({"authorization": "Bearer wrong-key"}, {"authorization": ""}):
        response = client.post("/chat/completions", json={}, headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert "wrong-key" not in response.text
    assert server.stats()["errors"] == {"unauthorized": 2}


@pytest.mark.parametrize(
    ("behaviour", "status", "code", "kind"),
    [
        pytest.param({"error_rate": 1.0}, {500}, None, {"server_error"}, id="error"),
        pytest.param(
            {"overload_rate": 1.0}, {503, 529}, "overloaded", {"overloaded_503", "overloaded_529"}, id="overload"
        ),
        pytest.param(
            {"context_tokens": 1}, {400}, "context_length_exceeded", {"context_length_exceeded"}, id="context"
        ),
        pytest.param({"filter": "there"}, {400}, "content_filter", {"content_filter"}, id="filter"),
        pytest.param({"models": "other, another"}, {404}, "model_not_found", {"model_not_found"}, id="models"),
    ],
)
def test_a_failure_has_its_status_and_code(ask, server, behaviour, status, code, kind):
    server.control(**behaviour)
    responses = [ask(f"Hello there {index}") for index in range(20)]
    assert {response.status_code for response in responses} == status
    assert {response.json()["error"]["code"] for response in responses} == {code}
    stats = server.stats()
    assert set(stats["errors"]) == kind
    assert sum(stats["errors"].values()) == 20
    assert stats["answered"] == 0


@pytest.mark.parametrize("behaviour", [{"drop_rate": 1.0}, {"down": True}], ids=["dropped", "down"])
def test_a_connection_is_closed_without_an_answer(ask, server, behaviour):
    server.control(**behaviour)
    for _ in range(3):
        with pytest.raises(httpx.RemoteProtocolError):
            ask()
    stats = server.stats()
    assert (stats["dropped"], stats["in_flight"], stats["answered"]) == (3, 0, 0)
    server.control(down=False, drop_rate=0.0)
    assert ask().status_code == 200


@pytest.mark.parametrize("behaviour", [{"hang_rate": 1.0}, {"latency_s": 1_000.0}], ids=["hung", "slow"])
def test_going_down_cuts_what_is_under_way(ask, server, behaviour):
    server.control(**behaviour)
    failures: list[Exception] = []

    def wait() -> None:
        try:
            ask()
        except httpx.HTTPError as error:
            failures.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not server.stats()["admitted"]:
        pass
    server.control(down=True)
    waiting.join()
    assert [type(failure) for failure in failures] == [httpx.RemoteProtocolError]
    stats = server.stats()
    assert (stats["dropped"], stats["max_in_flight"], stats["answered"]) == (1, 1, 0)


@pytest.mark.parametrize(
    ("behaviour", "counted"),
    [
        pytest.param({"hang_rate": 1.0}, {"hung": 1, "left": 0}, id="hung"),
        pytest.param({"latency_s": 1_000.0}, {"hung": 0, "left": 1}, id="slow"),
    ],
)
def test_a_request_is_over_when_its_client_leaves(server, behaviour, counted):
    server.control(**behaviour)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{server.base_url}/chat/completions",
            json={"model": "m", "messages": [{"role": "user", "content": "x"}]},
            headers={"authorization": "Bearer the-key"},
            timeout=httpx.Timeout(30, read=0.05),
            trust_env=False,
        )
    while server.stats()["in_flight"]:
        pass
    stats = server.stats()
    assert {name: stats[name] for name in counted} == counted
    assert stats["answered"] == 0


def test_the_same_content_draws_the_same_faults_again_after_a_reset(ask, server):
    def statuses() -> list[int]:
        server.control(error_rate=0.5, reset=True)
        return [ask(f"question {index % 5}").status_code for index in range(40)]

    first = statuses()
    assert set(first) == {200, 500}
    assert statuses() == first
    stats = server.stats()
    assert stats["admitted"] == 40
    assert stats["distinct_contents"] == 5
    assert 1 <= stats["max_answered_of_one_content"] <= 8


def test_requests_above_the_rate_are_refused_and_told_when_to_come_back(ask, server):
    server.control(requests_per_s=0.001, burst=3, reset=True)
    responses = [ask(f"question {index}") for index in range(5)]
    assert [response.status_code for response in responses] == [200, 200, 200, 429, 429]
    error = responses[-1].json()["error"]
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "requests")
    assert 900 < int(responses[-1].headers["retry-after"]) <= 1_000
    assert 900_000 < int(responses[-1].headers["retry-after-ms"]) <= 1_000_000
    stats = server.stats()
    assert (stats["refused"], stats["answered"], stats["distinct_contents"]) == (2, 3, 3)
    assert stats["permitted"] == pytest.approx(3 + 0.001 * (stats["last_arrival_s"] - stats["first_arrival_s"]))


def test_retry_after_is_whole_seconds_and_one_at_least(ask, server):
    server.control(requests_per_s=2.0, burst=1, reset=True)
    refused = next(response for response in (ask() for _ in range(100)) if response.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    assert 0 < int(refused.headers["retry-after-ms"]) <= 500


def test_tokens_above_the_rate_are_refused(ask, server):
    server.control(tokens_per_minute=10, reset=True)
    responses = [ask("seven words in this one and more", seed=index) for index in range(2)]
    assert [response.status_code for response in responses] == [200, 429]
    assert responses[1].json()["error"]["type"] == "tokens"
    stats = server.stats()
    # The first took what is 10 at most and owes none: seven words and the three of the answer.
    assert stats["prompt_tokens"] + stats["completion_tokens"] == 10
    assert server.stats()["permitted"] is None


def test_control_changes_all_or_nothing(server):
    with pytest.raises(urllib.error.HTTPError) as refusal:
        server.control(latency_s=1.0, error_rate=2.0)
    assert b"error_rate" in refusal.value.read()
    refusal.value.close()
    assert server.control()["latency_s"] == 0.0


def test_the_command_prints_its_address_and_what_to_export_but_no_key():
    command = [sys.executable, "-m", "dspex_pipelines.loopback", "--hang-rate=1"]
    environment = {**os.environ, "DSPEX_LOOPBACK_API_KEY": "the-secret"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        lines = [process.stdout.readline().strip() for _ in range(3)]
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
    assert lines[0].startswith("http://127.0.0.1:")
    assert lines[0].endswith("/v1")
    assert lines[1:] == [f"export DSPEX_QA_API_BASE={lines[0]}", 'export DSPEX_QA_API_KEY="$DSPEX_LOOPBACK_API_KEY"']
    assert rest == ""
    assert process.returncode in (0, -signal.SIGTERM)


@pytest.mark.parametrize(
    "arguments", [["--error-rate=2"], ["--answers=nobody"], ["--answers=nowhere:nothing"]], ids=str
)
def test_the_command_says_in_a_line_what_it_cannot_do(arguments):
    command = [sys.executable, "-m", "dspex_pipelines.loopback", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_server_that_cannot_start_is_told():
    with pytest.raises(RuntimeError, match="before it served"), serving(error_rate=2):
        pass


def test_a_server_ends_with_the_process_that_started_it():
    done = subprocess.run([sys.executable, "-c", DIES], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(done.stdout)).wait(timeout=60)


def test_it_listens_on_this_machine_alone(server):
    port = int(server.base_url.rpartition(":")[2].removesuffix("/v1"))
    listening = [c.laddr for c in psutil.Process(server.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", port)]
