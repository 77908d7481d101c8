"""No address shows its user, its password or the values of its query."""

from __future__ import annotations

import re
import sys

import pytest
from cases import SINUSOID, config

import tuning.cli
from cluster.config import Tracking
from cluster.jobs.package import environment
from cluster.tracking.mlflow_errors import refusal, short_error
from cluster.tracking.parameters import as_text
from cluster.tracking.tracker import start_tracker
from metatrain import storage
from metatrain.addresses import hide, holds_secret, without_secrets
from metatrain.console import again
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
        ("--address u:word@127.0.0.1:1 x", "--address ***@127.0.0.1:1 x"),
        ("127.0.0.1:1/?token=word", "127.0.0.1:1/?token=***"),
        ("127.0.0.1:1/?word", "127.0.0.1:1/?***"),
        ("h/?token=word", "h/?token=***"),
        ("tracking.uri=u:word@h:1", "tracking.uri=***@h:1"),
        ("//u:word@h", "//***@h"),
        (r"http:\\u:word@h", r"http:\\***@h"),
        (r"'http:\\\\u:word@h'", r"'http:\\\\***@h'"),
        ("output is 'gs:u:word@h'", "output is '***@h'"),
        ("http://u:a word@h/x", "http://***@h/x"),
        ("http://u%3Aword@h", "http://***@h"),
        ("http://h/#word", "http://h/#***"),
        ("http://h/#/experiments/1", "http://h/#/experiments/1"),
        ("http://h:5000 is not me@example.org", "http://h:5000 is not me@example.org"),
        ("s3://bucket/run#2", "s3://bucket/run#2"),
        ("http://[word", "http://***"),
        ("地址http://to/ken@h", "地址http://***@h"),
        ("3http://me:word@h", "3http://***@h"),
        ("http://[::1]:80/x", "http://[::1]:80/x"),
    ],
)
def test_what_of_an_address_is_shown(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


@pytest.mark.parametrize("text", ["a" * 200_000, "a:" * 50_000, "1:1/" * 50_000])
def test_a_long_text_without_addresses_stays_and_takes_no_minutes(text: str) -> None:
    assert without_secrets(text) == text


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


@pytest.mark.parametrize(
    "uri",
    [
        "u:hunter2@h/x",
        "//u:hunter2@h/x",
        "http:\\\\u:hunter2@h/x",
        "s3://u%3Ahunter2@h/x",
        "u:hun ter2@h/x",
        "gs:u:hunter2@h",
    ],
)
def test_an_address_with_a_password_is_no_folder(uri: str) -> None:
    with pytest.raises(InputError, match="holds a password") as refused:
        storage.Folder(uri)
    with pytest.raises(InputError, match="holds a password"):
        config(SINUSOID, checkpoint__uri=uri)
    assert "ter2" not in str(refused.value)


def test_the_values_of_a_query_are_refused_and_hidden() -> None:
    uri = "postgresql://db/x?password=hunter2"
    with pytest.raises(InputError, match="holds a password or options"):
        config(SINUSOID, tracking__uri=uri)
    assert hide("no role hunter2", uri) == "no role ***"
    assert not holds_secret("http://me@host")
    assert not holds_secret("sqlite:////srv/:b@c?/x.db")


@pytest.mark.parametrize("scheme", ["http://", ""])
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
    scheme: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uri = f"{scheme}me:{password}@host/x"
    monkeypatch.setattr(sys, "argv", ["metatrain", *(each.format(uri) for each in arguments)])
    with pytest.raises(SystemExit) as ended:
        tuning.cli.main()
    said = "".join(capsys.readouterr())
    assert ended.value.code == 2
    assert not [part for part in ("hun", "ter2") if part in said]


def test_a_job_neither_takes_the_value_of_a_variable_nor_names_a_password() -> None:
    with pytest.raises(InputError, match="takes only a name") as refused:
        environment("http://h", ["PASS=hunter2"])
    assert "hunter2" not in str(refused.value)
    line = again(["submit", "a.yaml", "--address", "http://u:hun ter2@h", "--set=a=u:hunter2@h"])
    assert "ter2" not in line
