"""No address shows its user, its password or the values of its query."""

from __future__ import annotations

import re
import sys

import pytest
from cases import SINUSOID, config

import tuning.cli
from cluster.config import Tracking
from cluster.tracking.mlflow_errors import refusal, short_error
from cluster.tracking.parameters import as_text
from cluster.tracking.tracker import start_tracker
from metatrain.addresses import hide, holds_secret, without_secrets
from metatrain.core import InputError

# Passwords that urlsplit, requests or a regular expression may cut at the wrong place.
PASSWORDS = ["hunter2", "hun/ter2", "hun#ter2", "hun?ter2", "hun@ter2", "hun:ter2", "/#?@:hunter2"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:word@host/x", "https://***@host/x"),
        ("https://token@host", "https://***@host"),
        (
            "postgresql://a:b/c@d@db/x?password=e&sslmode=f",
            "postgresql://***@db/x?password=***&sslmode=***",
        ),
        ("http://host/x?token", "http://host/x?***"),
        ("('http://me:word@host'), http://other", "('http://***@host'), http://other"),
        ("s3://bucket/run@2", "s3://bucket/run@2"),
        ("sqlite:////srv/a@b.db?timeout=5", "sqlite:////srv/a@b.db?timeout=5"),
        ("me@example.org has no address", "me@example.org has no address"),
    ],
)
def test_what_of_an_address_is_shown(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


@pytest.mark.parametrize("password", PASSWORDS)
def test_no_part_of_a_password_is_accepted_shown_or_recorded(
    password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"http://me:{password}@127.0.0.1:9"
    assert holds_secret(uri)
    with pytest.raises(InputError, match="holds a password") as refused:
        config(SINUSOID, tracking__uri=uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match="MLflow") as unanswered:
        start_tracker(Tracking(), "s", [])
    said = [
        str(refused.value),
        str(unanswered.value),
        short_error(ValueError(f"cannot parse {uri} at {re.split('[/#?@:]', password)!r}"), uri),
        str(refusal(ValueError(f"port {password} of {uri}"), uri)),
        str(as_text([("family.url", uri)])),
    ]
    assert not [text for text in said if "hun" in text or "ter2" in text]


def test_the_values_of_a_query_are_refused_and_hidden() -> None:
    uri = "postgresql://db/x?password=hunter2"
    with pytest.raises(InputError, match="holds a password or options"):
        config(SINUSOID, tracking__uri=uri)
    assert hide("no role hunter2", uri) == "no role ***"
    assert not holds_secret("http://me@host")
    assert not holds_secret("sqlite:////srv/:b@c?/x.db")


@pytest.mark.parametrize("password", [PASSWORDS[-1], "hun ter2"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["{}"],
        ["--address={}"],
        ["train", "{}", "{}"],
        ["train", "{}"],
        ["config", "a.yaml", "--sett={}"],
        ["data", "{}"],
        ["data", "import", "mine", "--size", "{}"],
        ["data", "import", "mine", "--source", "{}"],
        ["data", "check", "{}"],
        ["tune", "{}"],
        ["adapt", "a", "--support", "{}", "--query", "b", "--norm={}"],
        ["runs", "{}", "--jsonn"],
        ["evaluate", "{}", "--set", "{}"],
    ],
)
def test_no_command_repeats_a_password_that_was_typed(
    arguments: list[str],
    password: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uri = f"http://me:{password}@host/x"
    monkeypatch.setattr(sys, "argv", ["metatrain", *(each.format(uri) for each in arguments)])
    with pytest.raises(SystemExit) as ended:
        tuning.cli.main()
    said = "".join(capsys.readouterr())
    assert ended.value.code == 2
    assert not [part for part in ("hun", "ter2") if part in said]
