"""No secret of the environment is recorded."""

import pytest

from timmgate.core.redact import redacted


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "OPENAI_API_KEY", "my_passwd", "BASIC_AUTH"]
)
def test_a_secret_is_replaced_by_the_name_of_its_variable(name, monkeypatch):
    monkeypatch.setenv(name, "s3cr3t/value+")
    assert redacted("https://me:s3cr3t/value+@host s3cr3t/value+") == f"https://me:<{name}>@host <{name}>"


@pytest.mark.parametrize(
    ("name", "value"),
    [("HF_TOKEN", ""), ("HF_TOKEN", "1"), ("KEYBOARD_LAYOUT", "international"), ("GIT_AUTHOR_NAME", "international")],
)
def test_what_is_no_secret_stays(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    assert redacted("1 international text") == "1 international text"


def test_of_two_secrets_of_which_one_begins_the_other_neither_is_left(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "0123456789")
    monkeypatch.setenv("B_TOKEN", "0123456789abcdef")
    row = {"message": "0123456789abcdef 0123456789", "number": 3}
    assert redacted(row) == {"message": "<B_TOKEN> <A_TOKEN>", "number": 3}
