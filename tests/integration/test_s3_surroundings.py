"""Environments that lead to no bucket: one line within seconds that names the variable, never the value of a secret."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from graceful.errors import SpecError, StorageError
from graceful.storage import objects, server
from tests.support.s3_server import environment, serving

pytestmark = pytest.mark.integration
SECONDS = 15.0
FILES = {
    "no-ini": b"[[[ no settings\n",
    "no-text": b"[default]\naws_access_key_id = \xff\xfe\n",
    "half": b"[default]\naws_access_key_id = AKIAHALF\n",
    "no-program": b"[default]\ncredential_process = /no/such/program\n",
    "no-json": b"[default]\ncredential_process = /bin/echo sesame\n",
    "logged-out": b"[default]\nsso_start_url = https://x\nsso_region = r\nsso_account_id = 1\nsso_role_name = r\n",
}
NO_KEYS = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"}
"""Empty variables count as missing ones."""
WRONG: dict[str, tuple[dict[str, str], str]] = {
    "no scheme": ({"AWS_ENDPOINT_URL": "localhost:9000"}, r"AWS_ENDPOINT_URL=localhost:9000: must begin with http://"),
    "other scheme": ({"AWS_ENDPOINT_URL": "s3://minio"}, r"AWS_ENDPOINT_URL=s3://minio: must begin with http://"),
    "no host": ({"AWS_ENDPOINT_URL": "http://"}, r"AWS_ENDPOINT_URL=http://: .* name a host"),
    "half an address": ({"AWS_ENDPOINT_URL_S3": "http://[::1"}, r"AWS_ENDPOINT_URL_S3=http://\[::1: is not an address"),
    "words": ({"AWS_ENDPOINT_URL": "http://a b"}, r"AWS_ENDPOINT_URL=http://a b: the name of a host has"),
    "underscore": ({"AWS_ENDPOINT_URL": "http://minio_1:9000"}, r"AWS_ENDPOINT_URL=http://minio_1:9000: the name of a"),
    "port": (
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:99999"},
        r"AWS_ENDPOINT_URL=.*: is not an address \(Port out of range",
    ),
    "query": ({"AWS_ENDPOINT_URL": "http://minio:9000/?a=b"}, r"must end with the port or the path"),
    "password": ({"AWS_ENDPOINT_URL": "http://bob:ses/ame@minio:9000"}, r"AWS_ENDPOINT_URL: holds credentials"),
    "path": ({"AWS_ENDPOINT_URL": "{server}/some/path"}, r"s3://some/x/: .*no S3 server, or its path is missing"),
    "no TLS": ({"AWS_ENDPOINT_URL": "{tls}"}, r"s3://some/x/: not reachable \(SSL.*check https in AWS_ENDPOINT_URL"),
    "unknown host": ({"AWS_ENDPOINT_URL": "http://no.such.invalid"}, r"not reachable .*check AWS_ENDPOINT_URL"),
    "region": ({"AWS_REGION": "us east 1"}, r"AWS_REGION or AWS_DEFAULT_REGION names no region"),
    "profile": ({"AWS_PROFILE": "gone"}, r"no profile 'gone'; check AWS_PROFILE"),
    "no keys": (NO_KEYS, r"no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    "half a key": ({"AWS_SECRET_ACCESS_KEY": ""}, r"missing: AWS_SECRET_ACCESS_KEY.*; set what is missing"),
    "key in two lines": ({"AWS_ACCESS_KEY_ID": "ses\name"}, r"AWS_ACCESS_KEY_ID: holds a line break"),
    "token in two lines": ({"AWS_SESSION_TOKEN": "ses\name"}, r"AWS_SESSION_TOKEN: holds a line break"),
    "proxy": ({"HTTP_PROXY": "http://bob:ses/ame@h:1", "NO_PROXY": ""}, r"HTTP_PROXY, .* is not an address"),
    "dead proxy": ({"HTTP_PROXY": "http://127.0.0.1:1", "NO_PROXY": ""}, r"the proxy is not reachable .*HTTP_PROXY"),
    "token file": ({**NO_KEYS, "AWS_WEB_IDENTITY_TOKEN_FILE": "/gone", "AWS_ROLE_ARN": "arn:x"}, r"no cred.*/gone"),
    "no-ini": ({**NO_KEYS, "AWS_SHARED_CREDENTIALS_FILE": "{no-ini}"}, r"no-ini is not a file of AWS settings; repair"),
    "no-text": ({**NO_KEYS, "AWS_SHARED_CREDENTIALS_FILE": "{no-text}"}, r"no-text is not a file of AWS settings"),
    "half": ({**NO_KEYS, "AWS_SHARED_CREDENTIALS_FILE": "{half}"}, r"missing: aws_secret_access_key"),
    "no-program": ({**NO_KEYS, "AWS_CONFIG_FILE": "{no-program}"}, r"no credentials .*/no/such/program"),
    "no-json": ({**NO_KEYS, "AWS_CONFIG_FILE": "{no-json}"}, r"no credentials .*; check the AWS_ variables and ~/.aws"),
    "logged out": ({**NO_KEYS, "AWS_CONFIG_FILE": "{logged-out}"}, r"the login has expired .*; log in again"),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A server with a bucket, and files of settings that are none."""
    folder = tmp_path_factory.mktemp("settings")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    with serving() as endpoint:
        server.client().create_bucket(Bucket="some")
        objects.write_object("s3://some/x/y", b"content")
        known = {"server": endpoint, "tls": endpoint.replace("http:", "https:")}
        yield {**known, **{name: str(folder / name) for name in FILES}}


def filled(values: dict[str, str], places: dict[str, str]) -> dict[str, str]:
    return {name: re.sub(r"\{(.*?)\}", lambda found: places[found[1]], value) for name, value in values.items()}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_environment_is_one_line_within_seconds(case: str, places: dict[str, str]) -> None:
    values, line = WRONG[case]
    begin = time.monotonic()
    with environment(filled(values, places)), pytest.raises(StorageError, match=line) as caught:
        objects.list_objects("s3://some/x")
    assert time.monotonic() - begin < SECONDS
    assert "\n" not in caught.value.message
    assert not re.search("ses.?ame", caught.value.message)


def test_line_breaks_at_the_end_of_variables_are_stripped(places: dict[str, str]) -> None:
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL")
    with environment({**{name: f"{os.environ[name]}\n" for name in names}, "AWS_REGION": "us-east-1 \n"}):
        assert [stored.key for stored in objects.list_objects("s3://some/x")] == ["x/y"]
        assert not any(os.environ[name].endswith("\n") for name in names), "pyarrow and MLflow read them, too"


def test_a_bucket_that_cannot_be_is_not_waited_for_though_the_server_has_answered(places: dict[str, str]) -> None:
    assert objects.read_object("s3://some/x/y") == b"content"
    begin = time.monotonic()
    with pytest.raises(SpecError, match="a bucket's name has at most 255"):
        objects.list_objects("s3://no bucket/x")
    with pytest.raises(StorageError, match="S3 cannot have such an address"):
        objects.read_object("s3://some/")
    assert time.monotonic() - begin < SECONDS


@contextmanager
def answering(status: int, body: str) -> Iterator[dict[str, str]]:
    """A server that has one answer for everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Silence."""

    answers = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=answers.serve_forever, daemon=True).start()
    try:
        yield {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{answers.server_address[1]}"}
    finally:
        answers.shutdown()
        answers.server_close()


ANSWERS = [
    (200, "<html>Welcome</html>", "no S3 server"),
    (404, "not found", "no S3 server"),
    (403, "<Error><Code>RequestTimeTooSkewed</Code></Error>", "the clocks .* differ; set this machine's clock"),
    (400, "<Error><Code>ExpiredToken</Code></Error>", "the login has expired; log in again"),
    (301, "<Error><Code>PermanentRedirect</Code></Error>", "lies in another region; set AWS_REGION"),
    (403, "<Error><Code>AccessDenied</Code></Error>", r"access denied \(ListObjectsV2\); check the credentials"),
]


@pytest.mark.parametrize(("status", "body", "line"), ANSWERS, ids=[f"{one[0]} {one[1][:30]}" for one in ANSWERS])
def test_an_answer_of_another_kind_is_one_line(places: dict[str, str], status: int, body: str, line: str) -> None:
    begin = time.monotonic()
    with answering(status, body) as values, environment(values), pytest.raises(StorageError, match=line) as caught:
        objects.list_objects("s3://some/x")
    assert caught.value.message.startswith("s3://some/x/: ")
    assert time.monotonic() - begin < SECONDS


def test_a_program_ends_with_4_and_one_line(places: dict[str, str]) -> None:
    command = [sys.executable, "-m", "graceful.programs.housekeeping.sweep", "S3A://some/x"]
    env = {**os.environ, "AWS_ENDPOINT_URL": "minio:9000"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 4, done.stderr
    assert re.fullmatch(r"AWS_ENDPOINT_URL=minio:9000: must begin with http://.*\n", done.stderr)
