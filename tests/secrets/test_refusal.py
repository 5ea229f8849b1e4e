"""A secret that is declared is refused, with what it is called and what to do, and without what it is."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from dspex_pipelines import Choice, ConfigurationSpace, Dataset, Evaluation, Text, redaction
from dspex_pipelines.bridge.local_pool import LocalPoolLease
from dspex_pipelines.engine.journal.journal import Journal
from dspex_pipelines.engine.programs import inspect_program
from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.orchestration import resources
from dspex_pipelines.orchestration.build import build_evaluation
from dspex_pipelines.orchestration.resources import ResultStore, WorkerPoolResource
from dspex_pipelines.orchestration.secrecy import without_secrets

KEY = "wjalrXUtnFEMIK7MDENGbPxRfiCY"


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_SECRETS", redaction.Secrets())
    monkeypatch.setenv("MY_API_KEY", KEY)


def declared(**more: Any) -> Evaluation:
    dataset = Dataset(source=Path("data.csv"), inputs=("text",))
    return Evaluation(
        name="one", dataset=dataset, program="tests.programs:first", metrics=("tests.programs:same",), **more
    )


def choice(name: str, *options: str) -> ConfigurationSpace:
    return ConfigurationSpace(variables=(Choice(name=name, options=options),))


@pytest.mark.parametrize(
    ("more", "field"),
    [
        pytest.param({"init": {"api_key": "some literal"}}, "init.api_key", id="by-name"),
        pytest.param({"init": {"model": {"kwargs": [{"apiKey": "x"}]}}}, "init.model.kwargs[0].apiKey", id="deep"),
        pytest.param({"init": {"sort": KEY}}, "init.sort", id="by-value"),
        pytest.param({"init": {"header": f"Bearer {KEY}"}}, "init.header", id="within-a-value"),
        pytest.param({"init": {"x": "sk-proj-abcdefgh1234567890"}}, "init.x", id="by-its-form"),
        pytest.param({"init": {"url": "postgresql://me:hunter22@host/x"}}, "init.url", id="password-in-a-url"),
        pytest.param({"tags": {"team": KEY}}, "tags.team", id="tag"),
        pytest.param({"description": f"uses {KEY}"}, "description", id="description"),
        pytest.param(
            {"space": choice("answer.api_key", "a", "b")}, "space.answer.api_key[1][0]", id="variable-by-name"
        ),
        pytest.param({"space": choice("mode", "a", KEY)}, "space.mode[1][1]", id="variable-by-value"),
        pytest.param(
            {"space": ConfigurationSpace(variables=(Text(name="prompt", default=f"say {KEY}"),))},
            "space.prompt[0]",
            id="text",
        ),
    ],
)
def test_a_declaration_with_a_secret_is_refused(more: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        declared(**more)
    assert refused.value.field == field
    said = str(refused.value)
    assert said.startswith(f"{field}: a secret is not accepted; ")
    assert "environment variable" in said
    for given in (KEY, "some literal", "hunter22", "abcdefgh1234567890"):
        assert given not in said + repr(refused.value) + repr(refused.value.value)
    if KEY in repr(more):
        assert "it is the value of MY_API_KEY" in said


@pytest.mark.parametrize(
    "init",
    [
        {"sort_key": "title", "key": "id", "token": "word", "max_tokens": 100},
        {"api_key_env": "MY_API_KEY", "api_key": "MY_API_KEY", "password_file": "/run/secrets/one"},
        {"api_key": "", "state": "optimized.json", "base": "http://127.0.0.1:8123/v1"},
    ],
)
def test_what_only_sounds_like_a_secret_is_taken(init: dict[str, Any]) -> None:
    assert declared(init=init).init == init


def test_saved_state_with_a_key_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("dspy")
    model = {"model": "openai/gpt-4o-mini", "api_key": "saved-by-hand"}
    state = tmp_path / "state.json"
    state.write_text(json.dumps({"predict": {"lm": None, "demos": [{"password": "a demonstration"}]}}))
    inspect_program("dspy:Predict", {"signature": "q -> a", "state": str(state)}, inputs=("q",), variables=())
    state.write_text(json.dumps({"predict": {"demos": [], "lm": model}}))
    with pytest.raises(InvalidValue, match="predict.lm.api_key: a secret is not accepted; take it out") as refused:
        inspect_program("dspy:Predict", {"signature": "q -> a", "state": str(state)}, inputs=("q",), variables=())
    assert "saved-by-hand" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"worker_pool": WorkerPoolResource(environment={"MY_API_KEY": "literally"})}, "worker_pool.environment"),
        ({"worker_pool": WorkerPoolResource(environment={"OTHER": KEY})}, "worker_pool.environment"),
        ({"store": ResultStore(journal_url="postgresql+psycopg://me:hunter22@host/x")}, "store.journal_url"),
    ],
)
def test_a_resource_is_given_a_secret_by_env_var_alone(given: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidValue, match=field) as refused:
        build_evaluation(declared(), resources=given)
    assert "EnvVar" in str(refused.value)
    for secret in ("literally", KEY, "hunter22"):
        assert secret not in str(refused.value)


def test_env_vars_are_resolved_for_the_pool_and_shown_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    leased: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def lease(**options: Any) -> Generator[LocalPoolLease]:
        leased.append(options["environment"])
        yield LocalPoolLease(address="unix:/nowhere", runtime_dir=Path("/nowhere"))

    monkeypatch.setattr(resources, "lease", lease)
    monkeypatch.setenv("ELSEWHERE", "another-secret-value")
    pool = WorkerPoolResource(
        environment={"POOL_API_KEY": dg.EnvVar("ELSEWHERE"), "PLAIN": "shown"}, secrets=["PLAIN", "CUSTOMER"]
    )
    store = ResultStore(journal_url=dg.EnvVar("JOURNAL"))
    definitions = build_evaluation(declared(), resources={"worker_pool": pool, "store": store})

    @dg.op
    def uses(worker_pool: WorkerPoolResource) -> None:
        raise RuntimeError(worker_pool.environment["POOL_API_KEY"])

    @dg.job(resource_defs={"worker_pool": pool})
    def job() -> None:
        uses()

    monkeypatch.setenv("CUSTOMER", "Jane Doe & Sons")
    assert not job.execute_in_process(raise_on_error=False).success
    assert leased == [{"POOL_API_KEY": "another-secret-value", "PLAIN": "shown", redaction.LISTED: "PLAIN,CUSTOMER"}]
    assert redaction.redact("another-secret-value, Jane Doe & Sons") == "[redacted POOL_API_KEY], [redacted CUSTOMER]"
    assert definitions.resources is not None
    shown = str(definitions.resources["worker_pool"]) + str(definitions.resources["store"])
    assert "another-secret-value" not in shown


def test_an_environment_is_not_for_a_pool_elsewhere() -> None:
    pool = WorkerPoolResource(address="unix:/nowhere", environment={"A": "value of a"})
    context = dg.build_init_resource_context()
    with pytest.raises(InvalidValue, match="set them there"), pool.yield_for_execution(context):
        pass


def test_the_password_of_a_journal_is_in_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal("postgresql+psycopg://me:hunter22@127.0.0.1:1/x")
    with pytest.raises(Exception, match="journal") as failed, journal:
        pass
    told, link = "", failed.value
    while link is not None:
        told += f"{link} {link!r}"
        link = link.__cause__ or link.__context__
    assert "hunter22" not in told


@pytest.mark.parametrize("raised", [RuntimeError(KEY), dg.Failure(KEY, allow_retries=False)])
def test_what_an_op_raises_has_no_secret_in_its_causes_either(raised: Exception) -> None:
    raised.__cause__ = LookupError(f"cause {KEY}")
    with pytest.raises(dg.Failure) as failed, without_secrets():
        raise raised
    assert failed.value.__cause__ is None
    assert failed.value.__suppress_context__
    assert "[redacted MY_API_KEY]" in str(failed.value.description)
    assert failed.value.allow_retries is not isinstance(raised, dg.Failure)
    told = str(failed.value.metadata["traceback"].value)
    assert "LookupError: cause [redacted MY_API_KEY]" in told
    assert KEY not in told + str(failed.value.description)


def test_what_an_op_raises_without_a_secret_is_passed_on() -> None:
    error = RuntimeError("harmless")
    with pytest.raises(RuntimeError) as passed, without_secrets():
        raise error
    assert passed.value is error
