"""What ops raise, and what resources are configured with, without secrets: Dagster records and shows both."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Generator, Mapping
from typing import Any

import dagster as dg

from dspex_pipelines.model.secrecy import check_no_secret, refusal
from dspex_pipelines.orchestration.resources import ResultStore, WorkerPoolResource
from dspex_pipelines.redaction import LEAST_CHARACTERS, is_secret_variable, learn_environment, password_of, redact


@contextlib.contextmanager
def without_secrets() -> Generator[None]:
    """Pass on what is raised within; where that, or what led to it, tells a secret, a failure that says it without.

    Code of the user's runs in ops as well: it is imported there, and reads data sets.
    """
    learn_environment()
    try:
        yield
    except Exception as error:
        learn_environment()
        text = "".join(traceback.format_exception(error))
        if isinstance(error, dg.Failure):
            text += str(error.description or "")
        clean = redact(text)
        if clean == text:
            raise
        raise _failure(error, clean) from None


def _failure(error: Exception, told: str) -> dg.Failure:
    is_failure = isinstance(error, dg.Failure)
    said = (error.description or "") if is_failure else f"{type(error).__qualname__}: {error}"
    return dg.Failure(
        description=redact(said),
        metadata={**(error.metadata if is_failure else {}), "traceback": dg.MetadataValue.text(told)},
        allow_retries=error.allow_retries if is_failure else True,
    )


def check_resources(resources: Mapping[str, Any]) -> None:
    """Raise `InvalidValue` for a secret that a resource is given as it is: its configuration is shown."""
    learn_environment()
    for resource in resources.values():
        if isinstance(resource, WorkerPoolResource):
            for name, value in resource.environment.items():
                _check(f"worker_pool.environment[{name!r}]", value, of=name)
        elif isinstance(resource, ResultStore):
            _check("store.journal_url", resource.journal_url)


def _check(field: str, value: str, *, of: str = "") -> None:
    if isinstance(value, dg.EnvVar):
        return
    fix = f'give dagster.EnvVar("{of or "DSPEX_JOURNAL_URL"}"), and set that variable where the run is started'
    if password_of(value) or (is_secret_variable(of) and len(value) >= LEAST_CHARACTERS):
        raise refusal(field, fix=fix)
    check_no_secret(field, value, fix=fix)
