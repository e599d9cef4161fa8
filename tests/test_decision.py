from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimaran import Account, CredentialsError, Decision, Tier, resolve
from trimaran._decision import opted_out, switch_name, url_problem

URL = "https://collect.example"
ANONYMOUS = {"ALTIMATE_TELEMETRY_URL": URL}
ACCOUNT = Account("https://account.example", "ada@example.org")
YES = ["1", "true", "t", "yes", "y", "on", "TRUE", "Yes", "oN", " 1 ", "\ton\n"]
NOT_YES = ["", "0", "false", "no", "off", "n", "2", "-1", "enabled", "1.0", "truee"]

ACCOUNTS: st.SearchStrategy[Account | Exception | None] = st.one_of(
    st.none(),
    st.builds(Account, st.text() | st.sampled_from([URL, "http://localhost:1", "ftp://x"])),
    st.sampled_from([ValueError("secret"), CredentialsError("no file"), OSError()]),
)
ENVIRONMENTS = st.dictionaries(
    st.sampled_from(["DO_NOT_TRACK", "ALTIMATE_TELEMETRY_DISABLED", "ALTIMATE_TELEMETRY_URL"]),
    st.text() | st.sampled_from([*YES, *NOT_YES, URL, "http://[", "//x"]),
)


def test_an_account_with_a_token_is_authenticated() -> None:
    """Events go to the account's own URL, whatever the environment says for anonymous ones."""
    decision = resolve("altimate", ACCOUNT, ANONYMOUS)

    assert decision == Decision(
        tier=Tier.AUTHENTICATED,
        reason="an account with a token",
        source="account",
        url="https://account.example",
    )
    assert decision.enabled


def test_a_url_in_the_environment_is_anonymous() -> None:
    """Nobody is logged in, and the app's variable says where to send."""
    decision = resolve("altimate", None, ANONYMOUS)

    assert decision == Decision(
        tier=Tier.ANONYMOUS,
        reason="no account with a token; ALTIMATE_TELEMETRY_URL is set",
        source="ALTIMATE_TELEMETRY_URL",
        url=URL,
    )


@pytest.mark.parametrize("environ", [{}, {"ALTIMATE_TELEMETRY_URL": " "}])
def test_with_neither_it_is_disabled(environ: dict[str, str]) -> None:
    """Off is the default, is no fault, and says what would switch it on."""
    decision = resolve("altimate", None, environ)

    assert decision == Decision(
        tier=Tier.DISABLED,
        reason="no account with a token, and ALTIMATE_TELEMETRY_URL is not set",
        source="default",
    )
    assert not decision.enabled


@pytest.mark.parametrize("switch", ["DO_NOT_TRACK", "ALTIMATE_TELEMETRY_DISABLED"])
@pytest.mark.parametrize("value", YES)
@pytest.mark.parametrize("account", [None, ACCOUNT, ValueError()])
def test_a_switch_is_off_for_every_way_to_say_yes(
    switch: str, value: str, account: Account | Exception | None
) -> None:
    """Six words, in any case, with space around them; no account comes before them."""
    decision = resolve("altimate", account, {**ANONYMOUS, switch: value})

    assert decision == Decision(
        tier=Tier.DISABLED, reason=f"switched off by {switch}", source=switch
    )


@pytest.mark.parametrize("switch", ["DO_NOT_TRACK", "ALTIMATE_TELEMETRY_DISABLED"])
@pytest.mark.parametrize("value", NOT_YES)
def test_another_value_of_a_switch_changes_nothing(switch: str, value: str) -> None:
    """No value forces telemetry on, and none but a yes switches it off."""
    assert resolve("altimate", None, {**ANONYMOUS, switch: value}).tier is Tier.ANONYMOUS
    assert resolve("altimate", None, {switch: value}).tier is Tier.DISABLED


def test_off_in_code_comes_first() -> None:
    """The host's own word is the one that is named."""
    decision = resolve("altimate", ACCOUNT, {"DO_NOT_TRACK": "1"}, enabled=False)

    assert decision == Decision(tier=Tier.DISABLED, reason="switched off in code", source="code")


def test_the_general_switch_comes_before_the_apps_own() -> None:
    """With both set, the one for all programs is named."""
    environ = {"DO_NOT_TRACK": "1", "ALTIMATE_TELEMETRY_DISABLED": "1"}

    assert resolve("altimate", None, environ).source == "DO_NOT_TRACK"


def test_another_apps_switches_do_not_count() -> None:
    """Two apps in one process are switched apart."""
    environ = {"OTHER_TELEMETRY_URL": URL, "ALTIMATE_TELEMETRY_DISABLED": "1"}

    assert resolve("other", None, environ).tier is Tier.ANONYMOUS
    assert resolve("altimate", None, environ).tier is Tier.DISABLED


@pytest.mark.parametrize(
    ("app", "name"),
    [
        ("altimate", "ALTIMATE_TELEMETRY_URL"),
        ("my-agent", "MY_AGENT_TELEMETRY_URL"),
        ("agent 2.0", "AGENT_2_0_TELEMETRY_URL"),
    ],
)
def test_switches_are_named_after_the_app(app: str, name: str) -> None:
    """In capitals, with an underscore for whatever a variable cannot have."""
    assert switch_name(app, "URL") == name
    assert resolve(app, None, {name: URL}).source == name


def test_an_account_that_raises_disables() -> None:
    """It fails closed, not to the anonymous tier, and does not quote a foreign error."""
    decision = resolve("altimate", ValueError("token=secret"), ANONYMOUS)

    assert decision == Decision(
        tier=Tier.DISABLED,
        reason="the account could not be looked up: ValueError",
        source="account",
        is_fault=True,
    )


def test_our_own_error_is_told_in_full() -> None:
    """A credentials file that cannot be used says what to do, and never has the token in it."""
    decision = resolve("altimate", CredentialsError("c.json: run chmod 600"), ANONYMOUS)

    assert decision.reason == "the account could not be looked up: c.json: run chmod 600"
    assert decision.is_fault


@pytest.mark.parametrize("account", [{"url": URL}, URL, True, object()])
def test_what_is_no_account_disables(account: Any) -> None:
    """A provider of the host's own that gives something else is at fault, not the agent."""
    decision = resolve("altimate", account, ANONYMOUS)

    assert decision == Decision(
        tier=Tier.DISABLED,
        reason=f"the account is a {type(account).__name__}, not an Account",
        source="account",
        is_fault=True,
    )


def test_an_account_with_a_bad_url_disables() -> None:
    """The next tier is not tried: these events were meant for somebody."""
    decision = resolve("altimate", Account("collect.example"), ANONYMOUS)

    assert decision == Decision(
        tier=Tier.DISABLED,
        reason="the account's URL does not start with http:// or https://",
        source="account",
        is_fault=True,
    )


def test_a_bad_url_in_the_environment_disables() -> None:
    """The variable at fault is named, and its value is not quoted."""
    decision = resolve("altimate", None, {"ALTIMATE_TELEMETRY_URL": "collect.example"})

    assert decision == Decision(
        tier=Tier.DISABLED,
        reason="the URL in ALTIMATE_TELEMETRY_URL does not start with http:// or https://",
        source="ALTIMATE_TELEMETRY_URL",
        is_fault=True,
    )


@given(account=ACCOUNTS, environ=ENVIRONMENTS, enabled=st.booleans())
def test_it_fails_closed_for_whatever_it_is_given(
    account: Account | Exception | None, environ: dict[str, str], enabled: bool
) -> None:
    """It never raises; a URL goes with an enabled tier alone; only no account is anonymous."""
    decision = resolve("altimate", account, environ, enabled=enabled)

    assert (decision.url is None) == (decision.tier is Tier.DISABLED) == (not decision.enabled)
    assert decision.reason
    assert decision.source
    assert "secret" not in repr(decision)
    if decision.tier is Tier.ANONYMOUS:
        assert account is None
        assert decision.url == environ["ALTIMATE_TELEMETRY_URL"].strip()
    if decision.tier is Tier.AUTHENTICATED:
        assert isinstance(account, Account)
        assert decision.url == account.url
    if opted_out("altimate", environ, enabled=enabled) is not None or decision.is_fault:
        assert decision.tier is Tier.DISABLED


@given(environ=ENVIRONMENTS, name=st.sampled_from(["DO_NOT_TRACK", "ALTIMATE_TELEMETRY_DISABLED"]))
def test_no_switch_ever_forces_telemetry_on(environ: dict[str, str], name: str) -> None:
    """Whatever value a switch has, taking it away never leaves less telemetry."""
    without = {key: value for key, value in environ.items() if key != name}

    if resolve("altimate", None, environ).enabled:
        assert resolve("altimate", None, without).enabled


@pytest.mark.parametrize(
    "url",
    [
        "https://collect.example",
        "https://collect.example/",
        "https://collect.example:8443/base/path",
        "HTTPS://COLLECT.EXAMPLE",
        "https://127.0.0.1",
        "https://xn--bcher-kva.example",
        "http://localhost:8474",
        "http://LOCALHOST",
        "http://127.0.0.1:1/x",
        "http://127.8.9.10",
        "http://[::1]:8474",
    ],
)
def test_good_urls(url: str) -> None:
    """Https to anywhere; plain http, where a token goes along, to this machine alone."""
    assert url_problem(url, with_token=True) is None


@pytest.mark.parametrize(
    "url",
    [
        "http://collect.example",
        "http://10.0.0.1",
        "http://0.0.0.0",
        "http://localhost.example",
        "http://127.0.0.1.example",
        "http://[::2]",
        "http://127.1.example:80/",
    ],
)
def test_a_token_never_goes_out_in_the_clear(url: str) -> None:
    """Plain http to another machine is refused with a token, and taken without one."""
    assert url_problem(url, with_token=True) == (
        "is plain http to another machine, where a token must not go; use https"
    )
    assert url_problem(url, with_token=False) is None


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        (None, "is a NoneType, not text"),
        (b"https://collect.example", "is a bytes, not text"),
        ("", "does not start with http:// or https://"),
        ("collect.example", "does not start with http:// or https://"),
        ("ftp://collect.example", "does not start with http:// or https://"),
        ("file:///etc/passwd", "does not start with http:// or https://"),
        ("https://", "names no host"),
        ("https:///path", "names no host"),
        ("https://:8474", "names no host"),
        ("https://collect.example:port", "is not a URL"),
        ("https://collect.example:99999", "is not a URL"),
        ("https://[::1", "is not a URL"),
        ("https://collect.example\n", "has characters that a URL cannot have"),
        ("https://collect .example", "has characters that a URL cannot have"),
        ("https://b\xfccher.example", "has characters that a URL cannot have"),
        (
            "https://ada:secret@collect.example",
            "carries a user name or password, which is not sent",
        ),
        ("https://ada@collect.example", "carries a user name or password, which is not sent"),
        ("https://@collect.example", "carries a user name or password, which is not sent"),
        ("http://127.0.0.1\\@evil.example", "carries a user name or password, which is not sent"),
        ("https://h/?key=1", "has a query or a fragment, which an endpoint's URL cannot have"),
        ("https://h/?", "has a query or a fragment, which an endpoint's URL cannot have"),
        ("https://h#top", "has a query or a fragment, which an endpoint's URL cannot have"),
        ("https://h#", "has a query or a fragment, which an endpoint's URL cannot have"),
    ],
)
def test_bad_urls(url: object, problem: str) -> None:
    """What is wrong is said as the end of a sentence, and the URL is not quoted."""
    assert url_problem(url, with_token=False) == problem
    assert url_problem(url, with_token=True) == problem


@given(
    st.text()
    | st.builds("https://{}".format, st.text())
    | st.from_regex(r"\Ahttps?://[\[\]a-z0-9.:@/?#\\%]*\Z")
)
def test_any_text_is_a_url_or_not(url: str) -> None:
    """Nothing raises, and a URL that may carry a token may also go without."""
    with_token = url_problem(url, with_token=True)
    without = url_problem(url, with_token=False)

    if with_token is None:
        assert without is None


def test_a_tier_reads_as_its_name() -> None:
    """It is printed and logged as a word."""
    assert [str(tier) for tier in Tier] == ["authenticated", "anonymous", "disabled"]
