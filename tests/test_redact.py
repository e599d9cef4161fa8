from __future__ import annotations

import dataclasses
import enum
import pathlib
import random
import string
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trimaran import (
    BridgeCall,
    Command,
    CompactionTriggered,
    ContextOverflowRecovered,
    ErrorEvent,
    Event,
    Generation,
    SessionEnd,
    SessionStart,
    Tokens,
    ToolCall,
    ToolOutputsPruned,
)
from trimaran._pipeline.encoder import encode, jsonable
from trimaran._pipeline.masks import KeyKind, key_kind
from trimaran._pipeline.redact import Redactor, mask_text

HOME = "/srv/people/robin"


class Odd(Event, frozen=True, kw_only=True):
    """A host's event that holds anything."""

    value: object = None
    note: object = None


class Keyed(Event, frozen=True, kw_only=True, rename={"wire_name": "clientSecret"}):
    """A host's event with fields that are named like secrets."""

    api_key: object = None
    token: object = None
    max_token: object = None
    wire_name: object = None
    label: object = None


class Strict(Event, frozen=True, kw_only=True):
    """A host's event that takes no masked address."""

    email: str

    def __post_init__(self) -> None:
        if "@" not in self.email:
            raise ValueError(self.email)


# --- secrets of every shape, made from a seed: the part that must not survive is in the middle

_LETTERS = string.ascii_letters + string.digits
_URL_SAFE = _LETTERS + "-_"
_HEX = "0123456789abcdef"
_UPPER = string.ascii_uppercase + string.digits


def words(text: str) -> list[str]:
    """The words of *text*."""
    return text.split()


def chance(seed: int) -> random.Random:
    """A source of made-up secrets that are the same for the same *seed*."""
    return random.Random(seed)


def pattern(prefix: str, alphabet: str, length: int) -> Callable[[random.Random], str]:
    """Makes secrets of *length* characters after *prefix*."""

    def make(source: random.Random) -> str:
        # A letter at both ends, so that no punctuation of the secret is taken for the text's.
        middle = "".join(source.choices(alphabet, k=length - 4))
        return f"{prefix}{alphabet[10]}1{middle}2{alphabet[11]}"

    return make


def jwt(source: random.Random) -> str:
    """Three parts of base64."""
    return ".".join(
        (
            pattern("eyJ", _URL_SAFE, 24)(source),
            pattern("eyJ", _URL_SAFE, 60)(source),
            pattern("", _URL_SAFE, 43)(source),
        )
    )


SHAPES: dict[str, Callable[[random.Random], str]] = {
    "jwt": jwt,
    "openai": pattern("sk-proj-", _URL_SAFE, 48),
    "anthropic": pattern("sk-ant-api03-", _URL_SAFE, 93),
    "github classic": pattern("ghp_", _LETTERS, 36),
    "github oauth": pattern("gho_", _LETTERS, 36),
    "github user": pattern("ghu_", _LETTERS, 36),
    "github server": pattern("ghs_", _LETTERS, 36),
    "github refresh": pattern("ghr_", _LETTERS, 36),
    "github fine": pattern("github_pat_", _LETTERS + "_", 82),
    "gitlab": pattern("glpat-", _URL_SAFE, 20),
    "slack bot": pattern("xoxb-", _LETTERS + "-", 50),
    "slack user": pattern("xoxp-", _LETTERS + "-", 50),
    "slack app": pattern("xapp-1-", _LETTERS + "-", 50),
    "slack hook": pattern("https://hooks.slack.com/services/T0123/B0123/", _LETTERS, 24),
    "discord hook": pattern("https://discord.com/api/webhooks/123456/", _URL_SAFE, 68),
    "aws": pattern("AKIA", _UPPER, 16),
    "aws temporary": pattern("ASIA", _UPPER, 16),
    "google": pattern("AIza", _URL_SAFE, 35),
    "google access": pattern("ya29.", _URL_SAFE, 60),
    "google refresh": pattern("1//0", _URL_SAFE, 40),
    "google client": pattern("GOCSPX-", _URL_SAFE, 28),
    "stripe": pattern("sk_live_", _LETTERS, 24),
    "stripe restricted": pattern("rk_test_", _LETTERS, 24),
    "stripe public": pattern("pk_live_", _LETTERS, 24),
    "stripe hook": pattern("whsec_", _LETTERS, 32),
    "npm": pattern("npm_", _LETTERS, 36),
    "pypi": pattern("pypi-AgEIcHlwaS5vcmc", _URL_SAFE, 60),
    "hugging face": pattern("hf_", _LETTERS, 34),
    "groq": pattern("gsk_", _LETTERS, 52),
    "xai": pattern("xai-", _LETTERS, 80),
    "replicate": pattern("r8_", _LETTERS, 37),
    "perplexity": pattern("pplx-", _LETTERS, 48),
    "nvidia": pattern("nvapi-", _URL_SAFE, 64),
    "sendgrid": pattern("SG.", _URL_SAFE, 22),
    "sendgrid whole": lambda source: (
        pattern("SG.", _URL_SAFE, 22)(source) + pattern(".", _URL_SAFE, 43)(source)
    ),
    "twilio": pattern("SK", _HEX, 32),
    "twilio account": pattern("AC", _HEX, 32),
    "databricks": pattern("dapi", _HEX, 32),
    "digitalocean": pattern("dop_v1_", _HEX, 64),
    "docker": pattern("dckr_pat_", _URL_SAFE, 27),
    "shopify": pattern("shpat_", _HEX, 32),
    "linear": pattern("lin_api_", _LETTERS, 40),
    "grafana": pattern("glsa_", _LETTERS, 32),
    "vault": pattern("hvs.", _URL_SAFE, 90),
    "age": pattern("AGE-SECRET-KEY-1", _UPPER, 58),
    "telegram": pattern("123456789:AA", _URL_SAFE, 33),
    "bearer": pattern("Bearer ", _URL_SAFE, 24),
    "bearer in small": pattern("bearer ", _LETTERS, 12),
    "private key": lambda source: (
        "-----BEGIN RSA PRIVATE KEY-----\n"
        + "\n".join(pattern("", _LETTERS + "+/", 64)(source) for _ in range(4))
        + "\n-----END RSA PRIVATE KEY-----"
    ),
    "e-mail": lambda source: (
        pattern("", _LETTERS + "._+-", 12)(source)
        + pattern("@", _LETTERS + "-", 9)(source)
        + ".example"
    ),
    "e-mail in a URL": lambda source: pattern("", _LETTERS, 12)(source) + "%40robin-mail.org",
    "credentials": lambda source: (
        f"postgres://user{pattern(':', _LETTERS + '!$*@', 14)(source)}@db:5432/x"
    ),
    "credentials with slashes": lambda source: (
        f"https://user{pattern(':', _LETTERS + '/?', 14)(source)}@db/x"
    ),
    "user of a URL": lambda source: f"https://{pattern('', _LETTERS, 20)(source)}@git.example",
    "user at host": lambda source: f"user:{pattern('', _LETTERS + '!$%', 14)(source)}@db",
}
"""A secret, made with a random source. Its own punctuation is part of its shape."""

_SAFE_PARTS = (
    "Bearer BEGIN RSA PRIVATE KEY END postgres https://hooks.slack.com/services/T0123/B0123/"
    " https://discord.com/api/webhooks/123456/ https:// bearer user @db:5432/x @git.example"
)
"""What of a secret's surroundings may be read."""

FRAMES = (
    "{}",
    "{}.",
    "({})",
    "[{}]",
    "<{}>",
    '"{}"',
    "'{}'",
    "`{}`",
    "a {} b",
    "a,{},b",
    "a;{};b",
    "is {}: refused",
    "is {}, refused",
    "x={}&y=2",
    "line\n{}\nline",
    "line\\n{}\\nline",
    '{{"a": "{}"}}',
    '{{\\"a\\": \\"{}\\"}}',
    "\x1b[31m{}\x1b[0m",
    "wrong: {}!",
    "é{}",
    "/{}",
    "-{}",
    "_{}",
    "%3D{}",
    "%20{}",
    "{}\u2028",
)
"""Where a secret may stand in a text."""

# --- secrets without a shape, known by the name before them

NAMES = (
    "password",
    "db_password",
    "DB_PASSWORD",
    "userPassword",
    "password2",
    "passwd",
    "passphrase",
    "pwd",
    "smtp_pass",
    "secret",
    "client-secret",
    "clientSecret",
    "CLIENT_SECRET_V2",
    "token",
    "access_token",
    "accessToken",
    "authtoken",
    "_authToken",
    "x-amz-security-token",
    "csrf_tokens",
    "api_tokens",
    "authorization",
    "Proxy-Authorization",
    "Cookie",
    "Set-Cookie",
    "credentials",
    "credential",
    "api_key",
    "apikey",
    "apiKey",
    "APIKey",
    "X-API-Key",
    "openai.api.key",
    "access_key",
    "aws_secret_access_key",
    "private_key",
    "PRIVATE-KEY",
    "session_key",
    "session_token",
    "AccountKey",
    "encryption_key",
    "connection_string",
    "bearer",
    "auth",
    "basic_auth",
    "jwt",
    "otp",
    "seed_phrase",
)
"""Names of secrets."""

ASSIGNMENTS = (
    "{name}={value}",
    "{name}: {value}",
    "{name} = {value}",
    "{name} => {value}",
    "{name} := {value}",
    "{name}='{value}'",
    '{name}="{value}"',
    '{{"{name}": "{value}"}}',
    '{{"a":1,"{name}":"{value}","b":2}}',
    "{{'{name}': b'{value}'}}",
    '{{\\"{name}\\": \\"{value}\\"}}',
    '{{\\\\\\"{name}\\\\\\":\\\\\\"{value}\\\\\\"}}',
    "config['{name}'] = '{value}'",
    "-H '{name}: {value}' https://h",
    "--{name} {value}",
    "--{name}={value}",
    "-{name} '{value}'",
    "['cmd', '--{name}', '{value}']",
    '["cmd","--{name}","{value}"]',
    "https://h/p?a=1&{name}={value}&b=2",
    "<{name}>{value}</{name}>",
    "export {name}={value}",
    "line\\n{name}={value}\\nline",
    "({name}={value})",
    "{name}={value};b=2",
    "{name}={value},b=2",
    "{name}:\n  {value}",
    "the {name}: {value}",
    '{name}="{value}',
    '{{"{name}": {{"a": "{value}"}}}}',
    '{{"{name}": {{"a": {{"c": 1}}, "b": "{value}"}}}}',
    '{name}: ["{value}", "{value}"]',
)
"""Ways to give a name a value in a text."""

seeds = st.integers(0, 2**32)
few = settings(deadline=None, max_examples=25)  # for each of many shapes or names


def hidden_part(secret: str) -> str:
    """What of *secret* says nothing of its kind."""
    for part in sorted(_SAFE_PARTS.split(), key=len, reverse=True):
        secret = secret.replace(part, "\n")
    return secret


def assert_no_trace(text: str, secret: str) -> None:
    """*text* has no six characters in a row of *secret*."""
    for line in hidden_part(secret).splitlines():
        for start in range(max(len(line) - 5, 0)):
            assert line[start : start + 6] not in text


@pytest.mark.parametrize("shape", SHAPES)
@given(frame=st.sampled_from(FRAMES), seed=seeds)
@few
def test_secret_of_known_shape(shape: str, frame: str, seed: int) -> None:
    """A secret that shows by its shape is masked wherever it stands in a text."""
    secret = SHAPES[shape](chance(seed))
    masked = mask_text(frame.format(secret), HOME)

    assert_no_trace(masked, secret)
    assert "[masked:" in masked


VALUES = (
    pattern("", _LETTERS, 9),
    pattern("", _LETTERS + "!$%^*_-+.:/@#?|~", 20),
    pattern("", string.ascii_lowercase, 8),
)


@pytest.mark.parametrize("name", NAMES)
@given(assignment=st.sampled_from(ASSIGNMENTS), make=st.sampled_from(VALUES), seed=seeds)
@few
def test_value_after_the_name_of_a_secret(
    name: str, assignment: str, make: Callable[[random.Random], str], seed: int
) -> None:
    """A text's value is masked by the name before it, in each usual way to write that."""
    secret = make(chance(seed))
    masked = mask_text(assignment.format(name=name, value=secret), HOME)

    assert_no_trace(masked, secret)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Authorization: Bearer abc def\nHost: x", "Authorization: [masked:secret]\nHost: x"),
        ("curl -H 'Authorization: Basic a b' x", "curl -H 'Authorization: [masked:secret]' x"),
        ("Cookie: a=b; c=d", "Cookie: [masked:secret]"),
        ("Cookie: [a] b", "Cookie: [masked:secret]"),
        ("passphrase: correct horse battery", "passphrase: [masked:secret]"),
        ("cookies: {a: 1,\n b: 'x'} end", "cookies: [masked:secret]"),
        ("Basic dXNlcjpwYXNz", "Basic [masked:token]"),
        ("Bearer abc123", "Bearer [masked:token]"),
        ("API key: abc", "API key: [masked:secret]"),
        ("the seed phrase: a b c", "the seed phrase: [masked:secret]"),
        (
            "GET /a?code=abc&key=def&state=x",
            "GET /a?code=[masked:secret]&key=[masked:secret]&state=x",
        ),
        ("/a?x=1&X-Amz-Signature=0a1b", "/a?x=1&X-Amz-Signature=[masked:secret]"),
        (
            "AccountName=a;AccountKey=b/c==;Suffix=d",
            "AccountName=a;AccountKey=[masked:secret];Suffix=d",
        ),
        ("token=1234", "token=[masked:secret]"),
        ("xoxb-12345678901234567: refused", "[masked:token]: refused"),
        ('{"password": "a", "user": "b"}', '{"password": "[masked:secret]", "user": "b"}'),
        ('{"secret":{"a":1},"b":2}', '{"secret":[masked:secret],"b":2}'),
        ("<token>abc</token>", "<token>[masked:secret]</token>"),
        ("<token>abc", "<token>[masked:secret]"),
        ("postgres://u:p@h:5432/d", "postgres://[masked:credentials]@h:5432/d"),
        ("robin@mail.example wrote", "[masked:email] wrote"),
        ("mailto:robin@mail.example", "mailto:[masked:email]"),
        ("-----BEGIN PRIVATE KEY-----\nMII", "[masked:key]"),
        (
            "a -----BEGIN PGP PRIVATE KEY BLOCK----- x -----END PGP PRIVATE KEY BLOCK----- b",
            "a [masked:key] b",
        ),
    ],
)
def test_what_is_left_of_a_text(text: str, masked: str) -> None:
    """A marker takes the place of the secret alone, so that the text can still be read."""
    assert masked == mask_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "curl -u bob:{} https://h.test",
        "curl --user 'bob:{}' https://h.test",
        'curl -s -U "bob:{}" h.test',
        "wget --proxy-user=bob:{} h.test",
        "mysql -u root -p{} shop",
        "mysqldump -uroot -p '{}' shop",
        "sshpass -p {} ssh host",
        "mysql -h db -P 3306 -u root -p{}",
        "sshpass -P assphrase -p {} ssh host",
        "curl -su joe:{} https://h.test",
        "docker login -u bob -p {} registry.test",
        "podman login -p={}",
        "machine h.test login bob password {}",
        "create user bob identified by '{}'",
        "SharedAccessSignature sig={}&se=1",
        "password is {}",
        "the token is `{}`",
        "GH_TOKEN {} was refused",
        "my password {}",
        "OPENAI_KEY={}",
        "export STRIPE_KEY='{}'",
        "password%3D{}%26a",
    ],
)
def test_a_secret_that_no_name_stands_before(text: str) -> None:
    """As command lines have them, and people write."""
    masked = mask_text(text.format("9f3cQ71xTz80"))

    assert_no_trace(masked, "9f3cQ71xTz80")
    assert masked == mask_text(masked)


def test_what_no_name_stands_before_is_masked_alone() -> None:
    """The rest of a command line can still be read."""
    assert mask_text("mysql -u root -phunter2 shop") == "mysql -u root -p[masked:secret] shop"
    assert mask_text("curl -u 'bob:a b' h") == "curl -u 'bob:[masked:secret]' h"
    assert mask_text("sshpass -p 'a b' ssh h") == "sshpass -p '[masked:secret]' ssh h"


CLEAN = (
    "docker run -u 1000:1000 -p 8080:80 image",
    "ssh -p 22 host, then curl -s https://h.test",
    "password is required",
    "the token is expired, and the password is read-only",
    "the secret is out",
    "token limit reached, password field missing, secret santa",
    "the login page",
    "identified by its name",
    "the cache key item12345 is gone",
    "PRIMARY_KEY=id PARTITION_KEY=day IDEMPOTENCY_KEY=none KEY=left",
    *words("session session_id ses_1 author: authors=3 authored_by: sam tokens tokens_used"),
    *words("tokenizer cookiecutter secretary keyboard monkey passed bypass compass keys hash"),
    "the token count is 5",
    "tokens: 500",
    "max_tokens=4096",
    "max_token=4096 per_token: 0.1",
    "tokens_used: many, token_count: few",
    "secret santa",
    "secret: null, password=None, token: false",
    "password reset failed",
    "Password reset: failed",
    "password_reset_required: yes",
    "basic auth",
    "Basic understanding of authentication",
    "Basic QUFBQUFBQUE",
    "Basic a",
    "bearer of news",
    "Bearer authentication required",
    "primary_key=id sort_key: name cache_key=a.b keys: many public_key: k hash=ab",
    "tests/test_token.py::test_secret PASSED",
    "src/token.ts:12:5: error TS2345: x",
    "KeyError: 'name'",
    "TokenError: unexpected end",
    "std::token::next",
    "passwordless: on",
    "a -> b, c => d",
    "if a>b",
    "task-01J8ABCDEF1234567890",
    "disk-usage-of-the-whole-machine-0",
    "sk-learn-contrib-packages-of-note",
    "global-settings-of-the-2-machines",
    "pypi-publish-action-v1-release",
    "0123456789abcdef0123456789abcdef01234567",
    "550e8400-e29b-41d4-a716-446655440000",
    "msg_01JABCDEFGHJKMNPQRSTVWXYZ12",
    "toolu_01A09q90qw90lq917835lq9",
    "call_abcDEF1234567890abcDEF12",
    "claude-sonnet-4-5-20250929",
    "anthropic/claude-3.5-sonnet",
    "gpt-4o",
    "mcp__github__search_code",
    "git@github.com:owner/name.git",
    "ssh://git@github.com/owner/name",
    "https://example.com:8080/a?b=c#d",
    "https://registry.example/@scope/name@1.2.3",
    "https://registry.example:8080/@scope/name",
    "python:3.11@sha256:0123456789abcdef",
    "react@18.2.0",
    "@pytest.fixture",
    "12:30:01 started",
    "/usr/lib/home and home/robin",
    "GET /users/123",
    "1700000000:abc",
    "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----",
    "ya ya29 eyJ hf_ npm_config_cache pypi-attestations SG.x",
    "",
    " ",
    "日本語のテキスト",
)


@pytest.mark.parametrize("text", CLEAN)
def test_clean_text(text: str) -> None:
    """Ordinary words, ids, models, hashes, versions and paths are no secrets."""
    assert text == mask_text(text, HOME)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (HOME, "~"),
        (f"{HOME}/src/a.py", "~/src/a.py"),
        (f"in {HOME}.", "in ~."),
        (f"{HOME}2/a", f"{HOME}2/a"),
        (f"{HOME}-old {HOME}.bak", f"{HOME}-old {HOME}.bak"),
        ("/home/sam/a and /Users/sam.b/c", "~/a and ~/c"),
        ("file:///home/sam", "file://~"),
        ("\\/home\\/sam\\/a", "~\\/a"),
        ("C:\\Users\\Sam Lee\\a", "~\\a"),
        ("c:\\\\users\\\\sam\\\\a", "~\\\\a"),
        ("C:/Users/sam/a", "~/a"),
        ("C:\\Users\\sam and D:\\b", "~ and D:\\b"),
        ("\\\\wsl$\\home\\sam\\a", "\\\\wsl$~\\a"),
        ("/home/", "/home/"),
    ],
)
def test_home_directory(text: str, masked: str) -> None:
    """The home directory given, and any of the usual form, becomes a tilde."""
    assert masked == mask_text(text, HOME + "/")


@pytest.mark.parametrize("home", ["/", "", "C:\\", "robin"])
def test_home_that_is_none(home: str) -> None:
    """What names no directory of its own is not taken for a home."""
    assert mask_text("a robin in / and C:\\x/y", home) == "a robin in / and C:\\x/y"


@pytest.mark.parametrize(
    "text", ["D:\\people\\sam\\a", "D:\\\\people\\\\sam\\\\a", "D:/people/sam/a"]
)
def test_home_with_other_slashes(text: str) -> None:
    """A home on Windows is found however its slashes are written."""
    assert mask_text(text, "D:\\people\\sam")[:2] in {"~\\", "~/"}


fragments = st.sampled_from(
    [
        *"aZ1_-.:=/\\@ \n,;&?'\"`{}[]<>~()",
        *("token", "token=", "token: ", "--token ", "'--token', ", 'password="', '\\"', "://"),
        *("eyJhbGciOiJIUzI1NiIsInR5", "sk-abcDEF1234567890abc", "xoxb-12345678901234567", "%40"),
        *("-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----", "Bearer ", "Basic "),
        *("dXNlcjpwYXNz", "robin", "robin@mail.example", "/home/", "C:\\Users\\", HOME),
        *("cookie: ", "Authorization: ", "\\n", "[masked:token]", "[masked:secret]", "null"),
        *("max_token=1", "API key", "tokens", "user:pw@host", "</token>", "<token>"),
        *("curl -u a:", "mysql -p", "login -p '", "password is ", "token ", "a1b2c3", "_KEY="),
        *("identified by '", "%3D", "SharedAccessSignature sig=", "login a password "),
    ]
)


@given(st.lists(fragments, max_size=10).map("".join))
@example("robin@mail.example--token x")
@example("\\/srv/people/robinxoxb-12345678901234567")
@settings(max_examples=500)
def test_masking_is_idempotent(text: str) -> None:
    """A masked text has nothing to mask."""
    masked = mask_text(text, HOME)

    assert masked == mask_text(masked, HOME)


@pytest.mark.parametrize("unit", ["`://", "://a:", "x://y:z/"])
def test_a_marker_takes_nothing_more_with_it(unit: str) -> None:
    """A chain of URLs is masked at its end once, and not piece by piece up to its beginning."""
    masked = mask_text(unit * 5000 + "u:p@host", HOME)

    assert masked.endswith("[masked:credentials]@host")
    assert masked.startswith(unit * 4000)
    assert masked == mask_text(masked, HOME)


@pytest.mark.parametrize(
    "text", ["p://me:pa/ss@host", "p://me:pa?ss@host", "p://me:p`a\\ss@host", "p://me:p://a@host"]
)
def test_a_password_may_hold_what_ends_a_host(text: str) -> None:
    """All of it goes: half a password is no secret that was kept."""
    assert mask_text(text) == "p://[masked:credentials]@host"


@given(st.text(st.characters()), st.none() | st.text(max_size=5))
def test_any_text_can_be_masked(text: str, home: str | None) -> None:
    """No text makes masking fail, lone surrogates among them."""
    assert isinstance(mask_text(text, home), str)


UNITS = (
    *("a", ":", "=", "-", "@", ".", "/", "\\", "'", '"', "{", "[", "<", " ", "\n", "&", ",", "_"),
    *(
        "a:",
        "a=",
        "a.",
        "a@",
        "a-",
        "://",
        ":/",
        "-:",
        "a b ",
        "a@b.",
        "a://",
        "://a:",
        "::",
        "\\n:",
    ),
    *("token=", 'password="', 'password="cookie: ', "token={", "token: [", "cookie:", "token>"),
    *("-token ", "'--token',", "max_token=1", "token=null ", "api key", "?key=", "&a", "\\\\'"),
    *("eyJ", "eyJ.", "sk-", "sk-a", "ghp_", "AKIA", "SG.", "xoxb-", "glpat-", "1234567:AA"),
    *("Bearer ", "Bearer a", "Basic ", "Basic a", "-----BEGIN ", "-----BEGIN PRIVATE KEY-----"),
    *("curl -u ", "curl -u a:", "mysql ", "mysql -", "login ", "login -p ", "password is ", "a1"),
    *("identified by '", "SharedAccessSignature sig=", "token ", "token a1b2c3 ", "A_KEY=", "%3D"),
    *("/home/", "/home/a ", "C:\\Users\\", "C:\\Users\\a ", "\\home\\", "%40", HOME, "é", "a:b!"),
)


def cost(text: str) -> float:
    """CPU seconds to mask *text*, the least of three."""

    def once() -> float:
        began = time.process_time()
        mask_text(text, HOME)
        return time.process_time() - began

    return min(once() for _ in range(3))


@pytest.mark.parametrize("unit", UNITS)
def test_no_text_takes_long(unit: str) -> None:
    """Four times as much of whatever is asked most about takes about four times as long.

    A pattern that is not linear would take sixteen times as long, or much more; the
    smallest times are left to chance.
    """
    text = "home basic bearer token: @ " + unit * 65_536

    assert cost(text[:65_536]) < 9 * cost(text[:16_384]) + 0.05


# --- events

INNOCENT: tuple[Event, ...] = (
    SessionStart(model_id="claude-sonnet-4-5", provider_id="anthropic", agent="build"),
    SessionEnd(total_cost=1.5, total_tokens=5, tool_call_count=1, duration_ms=3.5),
    Generation(message_id="msg_1", finish_reason="stop", tokens=Tokens(input=5), cost=0.5),
    ToolCall(tool_name="bash", previous_tool=None, sequence_index=0, error="no such file"),
    BridgeCall(method="sql.execute", timestamp=1_700_000_000_000, session_id="ses_1"),
    ErrorEvent(error_name="KeyError", error_message="'name'", context="prompt"),
    ErrorEvent(error_name="E", error_message="word " * 100, context="prompt"),
    Command(command_name="init", command_source="skill", message_id="m"),
    ContextOverflowRecovered(tokens_used=5),
    CompactionTriggered(trigger="error_recovery"),
    ToolOutputsPruned(count=1, tokens_pruned=2),
    Odd(value=None, note=True),
    Odd(value="word " * 200),
    Keyed(max_token=5, token="", api_key=None, wire_name=False, label="label"),
)


@pytest.mark.parametrize("event", INNOCENT, ids=lambda event: type(event).__name__)
def test_clean_event_comes_back_itself(event: Event) -> None:
    """An event in which nothing had to change is not copied, neither when seen again."""
    redactor = Redactor(HOME)

    assert redactor.redact(event) is event
    assert redactor.redact(event) is event


SECRET = "ghp_" + "Ab1" * 12
MARK = "[masked:token]"


@pytest.mark.parametrize("event", INNOCENT, ids=lambda event: type(event).__name__)
def test_secret_in_any_field(event: Event) -> None:
    """A secret is masked in every field there is, of every event, and nothing else is."""
    for name in event.__struct_fields__:
        masked = Redactor(HOME).redact(msgspec.structs.replace(event, **{name: f"a {SECRET}"}))

        assert type(masked) is type(event)
        assert "masked:" in getattr(masked, name)
        assert msgspec.structs.replace(masked, **{name: getattr(event, name)}) == event
        assert_no_trace(encode(masked).decode(), SECRET)


@dataclasses.dataclass
class Holder:
    """A host's value with a field."""

    held: object


class Unhashable(type):
    """Makes classes that no set takes."""

    def __hash__(cls) -> int:
        raise RuntimeError(cls.__name__)


class OfUnhashable(metaclass=Unhashable):
    """Harmless but for its class."""


class Member(enum.Enum):
    """A host's value that is a secret."""

    KEY = SECRET


@pytest.mark.parametrize(
    ("value", "masked"),
    [
        (SECRET, MARK),
        ([1, ["a", SECRET]], [1, ["a", MARK]]),
        ((SECRET,), [MARK]),
        ({SECRET}, [MARK]),
        ({"a": {"b": SECRET}}, {"a": {"b": MARK}}),
        ({SECRET: 1}, {MARK: 1}),
        ({"a@b.example": 1, "c@d.example": 2}, {"[masked:email]": 1, "[masked:email]#1": 2}),
        ({("a", SECRET): 1}, {f'["a","{MARK}"]': 1}),
        ({"password": "x", "user": "y"}, {"password": "[masked:secret]", "user": "y"}),
        ({"a": {"apiKey": {"deep": [1]}}}, {"a": {"apiKey": "[masked:secret]"}}),
        ({"secret": None, "token": False, "pwd": True}, {"secret": None, "token": False, "pwd": True}),
        ({"secret": 5, "token": 5, "x": 5}, {"secret": "[masked:secret]", "token": "[masked:secret]", "x": 5}),
        ({"max_token": 5, "secrets": 2, "pass": 0.5}, {"max_token": 5, "secrets": 2, "pass": 0.5}),
        ({"max_token": "5"}, {"max_token": "[masked:secret]"}),
        ({"secret": "", "cookies": {}}, {"secret": "", "cookies": {}}),
        ({"name": "API_KEY", "value": "x"}, {"name": "API_KEY", "value": "[masked:secret]"}),
        ({"key": "token", "value": 5, "a": 1}, {"key": "token", "value": "[masked:secret]", "a": 1}),
        ({"name": "PATH", "value": "x"}, {"name": "PATH", "value": "x"}),
        ({"name": 5, "value": "x"}, {"name": 5, "value": "x"}),
        ([{"pwd": "x", "a": "x"}] * 2, [{"pwd": "[masked:secret]", "a": "x"}] * 2),
        (["--token", "x", "y"], ["--token", "[masked:secret]", "y"]),
        (["--verbose", "x", "y"], ["--verbose", "x", "y"]),
        ([["Cookie", "x"], ["Host", "y"]], [["Cookie", "[masked:secret]"], ["Host", "y"]]),
        (["secret", "santa", "list"], ["secret", "santa", "list"]),
        (Holder(SECRET), {"held": MARK}),
        (Member.KEY, MARK),
        (SECRET.encode(), MARK),
        (pathlib.PurePosixPath(HOME, "a"), "~/a"),
        (ValueError(f"bad {SECRET}"), f"ValueError: bad {MARK}"),
        (Tokens(input=SECRET), Tokens(input=MARK)),  # type: ignore[arg-type]
        (Tokens(input=1.5), Tokens(input=1.5)),  # type: ignore[arg-type]
        (object(), "<object>"),
        (OfUnhashable(), "<OfUnhashable>"),
        ([OfUnhashable()], ["<OfUnhashable>"]),
        (float("nan"), float("nan")),
        ("\ud800 a@b.example", "\ud800 [masked:email]"),
        (1 << 63, 1 << 63),
        (1 << 70, str(1 << 70)),
        (Tokens(input=1 << 70), Tokens(input=str(1 << 70))),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_value_of_any_kind(value: object, masked: object) -> None:
    """Whatever a field holds is looked through, and becomes plain where it is not."""
    event = Redactor(HOME).redact(Odd(value=value, timestamp=5))

    assert repr(masked) == repr(event.value)
    assert event.timestamp == 5


def test_numbers_are_left_alone() -> None:
    """A number stays the number it is, also in an event in which something was masked."""
    event = Odd(value=1 << 63, note=SECRET, timestamp=5)

    assert Redactor(HOME).redact(event) == Odd(value=1 << 63, note=MARK, timestamp=5)


EDGES = tuple(
    sign * (1 << bits) + step for sign in (1, -1) for bits in (53, 63, 64) for step in (-1, 0, 1)
)


@given(
    st.integers() | st.sampled_from(EDGES) | st.sampled_from((10**640, -(10**5000))),
    st.sampled_from(
        (
            lambda number: Odd(value=number),
            lambda number: Odd(value=number, note=SECRET),
            lambda number: Odd(value=[number, {"a": number}]),
            lambda number: Generation(tokens=Tokens(input=5, output=number)),
            lambda number: ContextOverflowRecovered(tokens_used=number),
            lambda number: SessionEnd(total_tokens=number, timestamp=number, duration_ms=number),
        )
    ),
)
def test_an_integer_is_sent_as_its_json_form(number: int, make: Callable[[int], Event]) -> None:
    """Wherever it stands: one that a parser refuses would cost its whole batch."""
    event = make(number)

    sent = msgspec.json.decode(encode(Redactor(HOME).redact(event)))

    expected = jsonable(event)
    assert isinstance(expected, dict)
    if expected.get("note") == SECRET:
        expected["note"] = MARK
    assert sent == expected


@pytest.mark.parametrize(
    ("encoded", "masked"),
    [
        (f'["{SECRET}"]', f'["{MARK}"]'),
        (f'{{"a":{{"{SECRET}":[1]}}}}', f'{{"a":{{"{MARK}":[1]}}}}'),
        ('{"password":"x","n":1.0}', '{"password":"[masked:secret]","n":1.0}'),
    ],
)
def test_what_is_encoded_stays_so(encoded: str, masked: str) -> None:
    """A container that waits as JSON is masked, and goes on as JSON."""
    event = Redactor(HOME).redact(Odd(value=msgspec.Raw(encoded.encode())))

    assert isinstance(event.value, msgspec.Raw)
    assert bytes(event.value).decode() == masked


def test_what_is_encoded_and_clean_comes_back_itself() -> None:
    """Nothing is encoded again for it."""
    event = Odd(value=msgspec.Raw(b'{"a": [1, 2.5, "text", null]}'))

    assert Redactor(HOME).redact(event) is event


def test_what_is_encoded_under_the_name_of_a_secret_is_hidden() -> None:
    """As a container is that is not."""
    event = Redactor(HOME).redact(Keyed(api_key=msgspec.Raw(b'["x"]'), label=msgspec.Raw(b"[]")))

    assert event.api_key == "[masked:secret]"


def test_containers_are_copied() -> None:
    """A container that changes after it was looked through does not change the event."""
    value = ["a"]
    event = Redactor(HOME).redact(Odd(value=value))
    value.append(SECRET)

    assert event == Odd(value=["a"])


def test_fields_named_like_secrets() -> None:
    """The name of a field, in Python or on the wire, tells a secret as a key does."""
    event = Keyed(api_key="x", token=7, max_token=7, wire_name=["x"], label="x")

    assert Redactor(HOME).redact(event) == Keyed(
        api_key="[masked:secret]",
        token="[masked:secret]",
        max_token=7,
        wire_name="[masked:secret]",
        label="x",
    )


def test_masked_event_comes_back_itself() -> None:
    """What was masked has nothing to mask."""
    redactor = Redactor(HOME)
    event = redactor.redact(Keyed(api_key="x", label=SECRET))

    assert redactor.redact(event) is event


def test_original_is_left_alone() -> None:
    """The event that was given is not changed."""
    event = ToolCall(tool_name="bash", message_id=SECRET)
    Redactor(HOME).redact(event)

    assert event == ToolCall(tool_name="bash", message_id=SECRET)


def test_class_that_checks_its_fields() -> None:
    """A class that would refuse the masked value does not get to see it."""
    assert Redactor(HOME).redact(Strict(email="a@b.example")).email == "[masked:email]"


def test_home_of_the_redactor() -> None:
    """The home directory is the redactor's; without one only the usual ones are masked."""
    event = Command(command_name=f"{HOME}/a /home/sam/b")

    assert Redactor(HOME).redact(event) == Command(command_name="~/a ~/b")
    assert Redactor().redact(event) == Command(command_name=f"{HOME}/a ~/b")


# --- what is remembered


@given(st.lists(st.tuples(st.sampled_from(sorted(SHAPES)), seeds), max_size=20))
@settings(deadline=None, max_examples=50)
def test_same_answer_with_memory(secrets: list[tuple[str, int]]) -> None:
    """However much a redactor has seen, it masks as if it saw an event for the first time."""
    redactor = Redactor(HOME)
    for shape, seed in secrets * 2:
        secret = SHAPES[shape](chance(seed))
        for text in (shape, secret, f"a {secret}"):
            event = Odd(value=text, note=[text])

            assert redactor.redact(event) == Redactor(HOME).redact(event)


def test_masked_texts_are_not_remembered() -> None:
    """A text that was masked, or is long, or stood under the name of a secret, is forgotten."""
    redactor = Redactor(HOME)
    redactor.redact(Odd(value=SECRET, note="clean"))
    redactor.redact(Odd(value="x" * 129))
    redactor.redact(Keyed(api_key="hunter2"))

    assert redactor._clean == {"clean"}


def test_memory_is_bounded() -> None:
    """Ids that never repeat, and classes made on the fly, do not add up."""
    redactor = Redactor(HOME)
    for number in range(3_000):
        event = Odd(value=f"msg_{number}")
        assert redactor.redact(event) is event
    redactor.redact(Odd(value=[{f"name_{number}": 1} for number in range(3_000)]))
    assert 0 < len(redactor._names) <= 1_024
    redactor.redact(Odd(value={"x" * 129: 1}))
    for number in range(300):
        kind: Any = msgspec.defstruct(f"E{number}", [], bases=(Event,), frozen=True)
        redactor.redact(kind())

    assert len(redactor._clean) <= 1_024
    assert "x" * 129 not in redactor._names
    assert len(redactor._secret_fields) <= 256


# --- error texts


@pytest.mark.parametrize("length", [499, 500, 501, 4_096, 4_097, 100_000])
def test_error_text_is_cut(length: int) -> None:
    """The error text of an event is cut at 500 characters; no other field is."""
    event = ErrorEvent(error_name="n" * length, error_message="a b" * length)
    text = "ab " * length
    masked = Redactor(HOME).redact(ErrorEvent(error_name=text, error_message=text[:length]))

    assert masked == ErrorEvent(error_name=text, error_message=text[: min(length, 500)])
    assert event.cut_fields == ("error_message",)


def test_length_of_error_text() -> None:
    """The length is the redactor's, also where it is less than what is remembered."""
    redactor = Redactor(HOME, max_error_text=20)
    redactor.redact(Command(command_name="x" * 30))
    masked = redactor.redact(ErrorEvent(error_name="x" * 30, error_message="x" * 30))

    assert masked == ErrorEvent(error_name="x" * 30, error_message="x" * 20)


def test_error_that_is_no_text() -> None:
    """An error text that is an exception becomes text and is cut; a container is kept."""
    error: Any = ValueError("x" * 1_000)
    details: Any = {"a": SECRET}

    assert Redactor().redact(BridgeCall(method="m", error=error)) == BridgeCall(
        method="m", error=f"ValueError: {'x' * 1_000}"[:500]
    )
    masked: Any = Redactor().redact(BridgeCall(method="m", error=details)).error
    assert masked == {"a": MARK}


@pytest.mark.parametrize("shape", SHAPES)
@given(at=st.integers(300, 510) | st.integers(3_900, 4_100), seed=seeds, spaced=st.booleans())
@few
def test_secret_at_the_cut(shape: str, at: int, seed: int, spaced: bool) -> None:
    """A secret that the cut would go through leaves no half behind."""
    secret = SHAPES[shape](chance(seed))
    filling = ("some words " * 400)[: at - 1] + (" " if spaced else "(")
    event = ErrorEvent(error_name="E", error_message=f"{filling}{secret} and more" * 2)
    text = Redactor(HOME).redact(event).error_message

    assert len(text) <= 500
    assert_no_trace(text, secret)


@pytest.mark.parametrize("shape", SHAPES)
@given(length=st.integers(3_000, 4_200), seed=seeds, glued=st.booleans())
@few
def test_secret_at_the_end_of_the_window(shape: str, length: int, seed: int, glued: bool) -> None:
    """Nor does one that the window ends in, where a marker before it took little room."""
    secret = SHAPES[shape](chance(seed))
    block = f"-----BEGIN PRIVATE KEY-----{'x' * length}-----END PRIVATE KEY-----"
    message = f"{block}{'' if glued else ' then '}{secret} {'more words ' * 500}"
    text = Redactor(HOME).redact(BridgeCall(method="m", error=message)).error

    assert isinstance(text, str)
    assert_no_trace(text, secret)


def test_no_marker_is_cut() -> None:
    """A marker that the cut would go through is left out whole."""
    for length in range(480, 502):
        event = ErrorEvent(error_name="E", error_message=f"{'x' * length} a@b.example y")
        text = Redactor(HOME).redact(event).error_message

        assert text.count("[") == text.count("[masked:email]")
        assert text.startswith("x" * min(length, 500))


# --- names


@pytest.mark.parametrize("name", NAMES)
def test_name_of_a_secret(name: str) -> None:
    """Names of secrets are known in each case in which names are written."""
    assert key_kind(name) is not KeyKind.PLAIN


@pytest.mark.parametrize(
    "name",
    words(
        "session session_id author authors authored_by tokens tokens_used total_tokens max_tokens"
        " input_tokens tokens_pruned token_count tokenizer cookiecutter secretary keyboard monkey"
        " passed bypass compass key keys sort_key primary_key public_key foreign_key cache_key hash"
        " password_reset_required passwordless auth_type pass_rate token_type secret_name"
        " passwordExpiresAt tokenURL id ids 5 api_keyboard"
    ),
)
def test_name_of_no_secret(name: str) -> None:
    """Names that only look like, count or describe secrets are told apart."""
    assert key_kind(name) is KeyKind.PLAIN
    assert key_kind("") is KeyKind.PLAIN


@pytest.mark.parametrize(
    "name", ["max_token", "per_token", "secrets", "cookies", "api_keys", "access_tokens", "pass"]
)
def test_name_of_a_count(name: str) -> None:
    """Under some names numbers are counts, and texts are secrets."""
    assert key_kind(name) is KeyKind.COUNTED
