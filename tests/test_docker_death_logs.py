"""The last lines before a death: bounded, redacted, in frames or as they are."""

from __future__ import annotations

import struct

import pytest
import urllib3.exceptions
from hypothesis import given
from hypothesis import strategies as st

from connectors.docker.death_logs import MAX_BYTES, MAX_LINE, demultiplexed, refusal, stamp, tail_of, tail_text
from connectors.docker.redaction import MASK, redact

JWT = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEAtopsecretline\nlastsecretline==\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        ("password=hunter2", "hunter2"),
        ("DB_PASSWORD = 'hunter2 with spaces'", "hunter2 with spaces"),
        ('{"dbPassword": "hunter\\"2", "user": "bob"}', "hunter"),
        ("MYSQLPASSWORD=hunter2", "hunter2"),
        ("api_key: abc-def-123", "abc-def-123"),
        ("x-api-key: abcdef", "abcdef"),
        ("clientSecret => s3", "s3"),
        ("accessToken:tok123", "tok123"),
        ("export AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "wJalrXUtnFEMI/K7MDENG"),
        ("found AKIAIOSFODNN7EXAMPLE in the environment", "AKIAIOSFODNN7EXAMPLE"),
        ("cannot connect to postgres://app:hunter2@db:5432/shop", "hunter2"),
        ("redis://:hunter2@cache", "hunter2"),
        ("clone https://x-token@git.example.com/a.git", "x-token"),
        ("GET /login?user=bob&token=abc123&next=/ 500", "abc123"),
        ("Authorization: Bearer abc.def.ghi", "abc.def.ghi"),
        ("curl -H 'authorization: Basic dXNlcjpwYXNz'", "dXNlcjpwYXNz"),
        ("sent Bearer 0123456789abcdef", "0123456789abcdef"),
        ("Set-Cookie: session=abc; Path=/", "abc"),
        (f"jwt was {JWT}.", JWT.split(".")[1]),
        ("token ghp_0123456789abcdefghijABCDEFGHIJ refused", "ghp_0123456789abcdefghijABCDEFGHIJ"),
        ("hook xoxb-123456789012-abcdefghijkl", "xoxb-123456789012"),
        ("using sk_live_0123456789abcdef", "sk_live_0123456789abcdef"),
        ("agent_prod-cluster_Zx81kdLLq0 was refused", "Zx81kdLLq0"),
        ("serve --db-password hunter2 --port 80", "hunter2"),
        ("serve --secret='hunter2'", "hunter2"),
        ("blob QmFzZTY0IGVuY29kZWQgc2VjcmV0IG1hdGVyaWFs01", "QmFzZTY0"),
        ('level=info msg="login with password=hunter2 failed" user=bob', "hunter2"),
        (f"wrote key {KEY} to disk", "topsecretline"),
        ("MIIEtopsecretline\nlastsecretline==\n-----END PRIVATE KEY-----\ndone", "secretline"),
        ("-----BEGIN EC PRIVATE KEY-----\nMIIEtopsecretline", "secretline"),
    ],
)
def test_secret_looking_values_are_taken_out(line, secret):
    assert secret in line

    redacted = redact(line)

    assert secret not in redacted
    assert MASK in redacted


@pytest.mark.parametrize(
    "line",
    [
        "panic: runtime error: index out of range [3] with length 3",
        "2026-11-22T15:43:35.277754317Z INFO listening on 0.0.0.0:8080 author=bob",
        "pulled sha256:9d9ecfd4c9d986d2867d4d38e30369df91d2080c2b2e6b002bb3ab97851ff4aa",
        "commit 43c6209b0e8d3c6cbb3f1c2b7a5f6e4d3c2b1a00",
        "Token expired, basic authentication refused",
        "https://example.com/a?page=2&sort=name",
        'File "/usr/local/lib/python3.11/site-packages/sqlalchemy/engine/base.py", line 1967, in _exec_single_context',
        "java.lang.OutOfMemoryError: Java heap space",
        "0 passed: 3, compass=north tokenizer=fast",
    ],
)
def test_what_tells_what_happened_stays(line):
    assert redact(line) == line


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=400))
def test_any_text_can_be_redacted_and_twice_is_no_different_for_what_was_assigned(text):
    assert "hunter2hunter2" not in redact(text + "\npassword=hunter2hunter2")


@given(
    st.sampled_from(["password", "DB_PASS", "secret", "API-KEY", "authToken", "PRIVATE_KEY", "aws.secret.key"]),
    st.sampled_from(["=", ": ", '":"', " = ", "=>"]),
    st.text(alphabet="abcdefghijklmnopqrstuvwxyz0123456789!$%*", min_size=4, max_size=30),
)
def test_whatever_is_assigned_to_a_secret_looking_key_is_taken_out(key, separator, value):
    redacted = redact(f"start {key}{separator}{value} end")

    assert redacted.startswith("start ")
    assert value not in redacted.removeprefix(f"start {key}{separator}").removesuffix(" end").replace(MASK, "")


@pytest.mark.parametrize(
    "piece", ["a", "a.", "=", "a=", "-----BEGIN ", '"', "token:", "eyJ", "http://", "a_", "--", '="\\', " ", "a://", "eyJaaaaa."]
)
def test_hostile_text_takes_no_time_to_redact(piece):
    redact(piece * (65_536 // len(piece)))  # a pattern that backtracks would take minutes: the suite's timeout tells


def frames(*payloads):
    return b"".join(struct.pack(">BxxxL", stream, len(payload)) + payload for stream, payload in payloads)


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=50))), st.integers(1, 20))
def test_frames_are_taken_apart_however_they_arrive(payloads, size):
    written = frames(*payloads)
    chunks = [written[i : i + size] for i in range(0, len(written), size)]

    assert b"".join(demultiplexed(chunks)) == b"".join(payload for _, payload in payloads)


def test_a_frame_that_was_broken_off_is_told_as_far_as_it_goes():
    written = frames((1, b"first\n"), (2, b"second\n"))

    assert b"".join(demultiplexed([written[:-4]])) == b"first\nsec"
    assert b"".join(demultiplexed([written[: 8 + 6 + 3]])) == b"first\n"


def test_the_last_lines_are_kept():
    assert tail_text(b"one\ntwo\r\nthree\n", 2) == "two\nthree"
    assert tail_text(b"", 5) == ""


def test_long_lines_are_cut_and_the_whole_is_bounded():
    line = ("é " * 500).encode()
    text = tail_text(b"\n".join([line] * 30), 200)

    assert len(text.encode()) <= MAX_BYTES
    assert {len(each.encode()) <= MAX_LINE for each in text.split("\n")} == {True}
    assert all(each.endswith("…") for each in text.split("\n"))
    assert len(text.split("\n")) in (15, 16)


def test_a_secret_is_seen_before_its_line_is_cut():
    line = "x " * 505 + JWT

    assert "eyJ" not in tail_text(line.encode(), 5)


def test_colours_and_control_characters_are_no_part_of_a_line():
    assert tail_text(b"\x1b[31mpass\x1b[0mword=\x00hunter2\x07\n\x1b]0;title\x07ok", 5) == f"password={MASK}\nok"
    assert tail_text(b"\xff\xfe broken", 5) == "�� broken"


def test_what_comes_is_held_only_as_far_as_it_counts():
    tail = tail_of((b"line %d\n" % number * 100 for number in range(3000)), 50)

    assert tail.text.split("\n") == ["line 2999"] * 50
    assert tail.reason == ""


def test_an_endless_log_is_given_up():
    def endless():
        while True:
            yield b"x" * 10_000 + b"\n"

    tail = tail_of(endless(), 3)

    assert len(tail.text.split("\n")) == 3
    assert tail.reason == "what follows was too much to read"
    assert tail_of(endless(), 3, lambda: True).reason == "what follows was too much to read"
    assert tail_of(iter([b"y" * 300_000]), 3).text == "[a line of more than 64 KiB]"


def test_what_came_before_the_connection_broke_is_kept():
    def broken():
        yield b"last words\n"
        raise urllib3.exceptions.ProtocolError("cut")

    tail = tail_of(broken(), 3)

    assert (tail.text, tail.reason) == ("last words", "the engine did not send all of it")
    assert tail_of([], 3).reason == "it wrote nothing"


@pytest.mark.parametrize(
    ("status", "words", "reason"),
    [
        (501, "configured logging driver does not support reading", "its logging driver cannot be read"),
        (404, "No such container: x", "it was removed before its log could be read"),
        (409, "can not get logs from container which is dead or marked for removal", "it was removed before its log could be read"),
        (403, "Forbidden", "the engine, or a proxy before it, refuses to show logs"),
        (500, "open /x?token=abc:\nno such file", f"the engine answered 500: open /x?token={MASK} no such file"),
    ],
)
def test_why_there_is_no_log_is_said(status, words, reason):
    assert refusal(status, words) == reason


def test_times_are_told_to_the_nanosecond():
    assert stamp(1_795_362_129_000_000_001) == "1795362129.000000001"
