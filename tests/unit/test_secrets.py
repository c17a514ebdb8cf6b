"""Planted secrets, in more than 200 forms, don't survive; ordinary texts do."""

import os
import signal
import subprocess
import sys
import time

import pytest
from planning import composed

from train import scrubbing
from train.compose import compose_run, parse_overrides
from train.errors import ConfigError, UserError
from train.failures import failure_from_exception
from train.secrets import HIDDEN, holds_secret, mask_file, scrub, secret_values

SECRET = "s3cr3tValue0123456789"
NAMES = (
    "API_KEY",
    "WANDB_API_KEY",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "password",
    "DB_PASSWORD",
    "passwd",
    "PWD_SECRET",
    "client_secret",
    "AWS_SECRET_ACCESS_KEY",
    "access-key",
    "private_key",
    "auth_token",
    "SLACK_WEBHOOK_TOKEN",
    "passphrase",
    "credential",
    "GITHUB_TOKEN",
    "session_key",
    "SSH_KEY",
    "MYSQL_PASS",
    "GITHUB_PAT",
    "apikey",
)
SHAPES = (
    "{name}={secret}",
    "{name}: {secret}",
    "export {name}={secret}",
    "{name} = '{secret}'",
    '"{name}": "{secret}"',
    "{{'{name}': '{secret}'}}",
    "url?x=1&{name}={secret}&y=2",
    '{name}="{secret}" python train.py',
    "RuntimeError: bad value ({name}={secret})",
)
FORMS = [shape.format(name=name, secret=SECRET) for name in NAMES for shape in SHAPES]
KEYS = (
    "hf_" + "aB3" * 12,
    "ghp_" + "aB3" * 12,
    "github_pat_" + "aB3" * 12,
    "glpat-" + "aB3" * 7,
    "sk-" + "aB3" * 12,
    "xoxb-1234567890-abcdef",
    "AKIA" + "A1" * 8,
    "AIza" + "a" * 35,
    "wandb_v1_" + "aB3" * 12,
    "eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.abcDEF",
)
OTHERS = [
    f"https://me:{SECRET}@example.org/x",
    f"postgres://u:{SECRET}@h:5432/db",
    f"Authorization: Bearer {SECRET}",
    f"authorization: basic {SECRET}",
    f"--password {SECRET}",
    f"curl --token={SECRET} x",
    f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----",
    f"headers={{'Cookie': '{SECRET}'}}",
]


def test_there_are_many_forms():
    assert len(FORMS) + len(KEYS) + len(OTHERS) >= 200


@pytest.mark.parametrize("text", [*FORMS, *OTHERS])
def test_a_secret_goes_with_its_name(text):
    found = scrub(text, {})
    assert SECRET not in found, found
    assert HIDDEN in found


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_known_by_its_shape(key):
    assert key not in scrub(f"the server said no to {key}, sorry", {})


@pytest.mark.parametrize("name", NAMES)
def test_a_secret_is_known_by_its_value(name):
    assert SECRET not in scrub(f"somewhere {SECRET} appears", {name: SECRET})


@pytest.mark.parametrize(
    "text",
    [
        "loss of step 12 is not finite; rows a, b",
        "num_tokens=512, tokens_per_s=3.5",
        "expected one of raw, chat",
        "KeyError: 'input_ids'",
        "https://example.org/x",
        "train.learning_rate=1e-3; set train.epochs=2",
        "the tokenizer has 512 tokens",
        "out of memory. Tried to allocate 2.00 GiB",
    ],
)
def test_ordinary_texts_stay_as_they_are(text):
    assert scrub(text, {"HOME": "/home", "API_KEY": ""}) == text


def test_failures_are_scrubbed():
    try:
        raise RuntimeError(f"GET https://me:{SECRET}@example.org failed, token={SECRET}")
    except RuntimeError as error:
        failure = failure_from_exception(error)
    assert SECRET not in failure.message + failure.traceback


@pytest.mark.parametrize("text", [*FORMS, *OTHERS, *KEYS])
def test_a_secret_that_is_typed_is_refused_and_not_repeated(text):
    with pytest.raises(ConfigError, match="holds what looks like a secret") as caught:
        parse_overrides([f"dataset.path={text}"])
    assert SECRET not in str(caught.value)
    assert text not in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "tracking.tags=[s3cr3tValue0123456789]",
        "launcher.setup=['export HF_TOKEN=abcdef']",
        "+my_api_key=abcdef",
        "grid.axes={model.path: [/data, 'https://me:abcdef@example.org']}",
        "tracking.project=${oc.env:MY_TOKEN}",
    ],
)
def test_a_secret_is_refused_wherever_it_is_typed(monkeypatch, override):
    monkeypatch.setenv("MY_TOKEN", SECRET)
    with pytest.raises(UserError, match="holds what looks like a secret") as caught:
        composed("+grid=smoke_2x2", override)
    assert "abcdef" not in str(caught.value)


def test_a_secret_in_a_file_of_the_users_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text(
        f"name: mine\nsource: hub\npath: https://me:{SECRET}@example.org/x\n"
    )
    weights = ["objective.prompt_weight=0", "objective.response_weight=1", "seed=0"]
    with pytest.raises(ConfigError, match=r"^model\.path holds what looks like a secret"):
        compose_run(["model=mine", *weights], [str(tmp_path)])


@pytest.mark.parametrize(
    "text",
    ["launcher.setup=[source ~/.tokens, 'export HF_TOKEN=$(cat ~/.hf)']", "HF_TOKEN=$MINE python -m x"],
)
def test_saying_where_a_secret_is_is_no_secret(text):
    assert not holds_secret(text)


def test_a_password_in_a_url_of_the_environment_is_known_by_value():
    assert secret_values({"DATABASE": f"postgres://me:{SECRET}@host/db", "EDITOR": "vi"}) == [SECRET]


def test_a_log_is_masked_where_it_lies_while_others_append(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", f"ü{SECRET}")
    path = tmp_path / "log"
    mask_file(path)
    text = f"first\nHF_TOKEN={SECRET}\nsay ü{SECRET} x\nlast ".encode() + b"\xff"
    path.write_bytes(text)
    with open(path, "ab") as stream:
        mask_file(path)
        stream.write(b" appended")
    masked = path.read_bytes()
    assert len(masked) == len(text) + len(b" appended")
    assert masked.startswith(b"first\nHF_TOKEN=[hidden]****")
    assert masked.endswith(b" x\nlast \xff appended")
    assert SECRET.encode() not in masked
    mask_file(path)
    assert path.read_bytes() == masked


def test_what_is_printed_never_reaches_the_disk_with_its_secrets(tmp_path):
    """Not at the end, not while it is under way, and not where the one who printed it is killed."""
    path = tmp_path / "log"
    script = f"""
import os, signal, time
from train.scrubbing import scrubbed_file
with scrubbed_file({str(path)!r}) as pipe:
    os.write(pipe, b"one MY_TOKEN={SECRET}\\n-----BEGIN PRIVATE KEY-----\\nabc")
    os.write(pipe, b"def\\n-----END PRIVATE KEY-----\\ntwo {SECRET[:9]}")
    time.sleep(0.3)
    os.write(pipe, b"{SECRET[9:]}\\n\\xff three")
with scrubbed_file({str(path)!r}) as pipe:
    print(open({str(path)!r}, "rb").read(), flush=True)
    os.write(pipe, b"\\nfour {SECRET}")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "MY_TOKEN": SECRET},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    whole = f"one MY_TOKEN={HIDDEN}\n{HIDDEN}\ntwo {HIDDEN}\n".encode() + b"\xff three"
    assert done.stdout.decode().strip() == repr(whole), "all of it, once the file is closed"
    deadline = time.monotonic() + 10
    while path.read_bytes() != whole + f"\nfour {HIDDEN}".encode():
        assert time.monotonic() < deadline, path.read_bytes()
        time.sleep(0.02)


def test_a_helper_that_was_killed_is_replaced(tmp_path):
    for attempt in range(3):
        with scrubbing.scrubbed_file(tmp_path / "log") as pipe:
            os.write(pipe, f"{attempt} HF_TOKEN={SECRET}\n".encode())
        process = scrubbing._HELPERS[-1]._process
        process.kill()
        process.wait()
    assert (tmp_path / "log").read_text() == "".join(f"{attempt} HF_TOKEN={HIDDEN}\n" for attempt in range(3))
