"""What batches are bound to: whose they are, and what of that is on a disk."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimaran._account import Account
from trimaran._decision import Decision, resolve
from trimaran._spool.values import account_in, bound_to, destination_of, worked_out

URL = "https://x.test"
TOKENS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=30)


def decided(url: str = URL) -> Decision:
    """To send with a token."""
    return resolve("test", Account(url), {})


def nameless(token: str, url: str = URL, *, with_spans: bool = False) -> str:
    """What batches of an account without an e-mail address are bound to."""
    return worked_out(bound_to(decided(url), "", token, with_spans=with_spans))


@given(email=st.from_regex(r"[a-z]{1,9}@[a-z]{1,9}\.test", fullmatch=True), spans=st.booleans())
def test_an_address_stands_for_its_account(email: str, spans: bool) -> None:
    """Whatever its token is; it can be read back."""
    bound = bound_to(decided(), email, "t0k3n", with_spans=spans)

    assert bound == bound_to(decided(), email, "another", with_spans=spans)
    assert bound == destination_of(decided(), email, with_spans=spans)
    assert account_in(bound) == email


@settings(max_examples=10, deadline=None)
@given(token=TOKENS, other=TOKENS)
def test_without_one_its_token_does_and_is_not_told(token: str, other: str) -> None:
    """Equal tokens are one account, others are others."""
    account = account_in(nameless(token))

    assert account.startswith("account:")
    assert len(account) == 40
    assert (account == account_in(nameless(other))) == (token == other)
    assert token not in account.removeprefix("account:") or len(token) < 9


@pytest.mark.parametrize("email", ["", " ", "\t"])
def test_a_blank_address_is_none(email: str) -> None:
    """It would tell nobody apart."""
    assert worked_out(bound_to(decided(), email, "t0k3n")) == nameless("t0k3n")


def test_it_is_not_worked_out_at_once_and_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a tenth of a second, which is not the host's."""
    binding = bound_to(decided(), "", "t0k3n")
    assert not isinstance(binding, str)
    first = binding()
    monkeypatch.delattr("hashlib.pbkdf2_hmac")

    assert binding() == first


def test_the_same_token_elsewhere_has_nothing_in_common() -> None:
    """Who has two disks cannot tell that it is one account."""
    assert account_in(nameless("t0k3n")) != account_in(nameless("t0k3n", "https://y.test"))
    assert account_in(nameless("t0k3n")) == account_in(nameless("t0k3n", with_spans=True))


def test_nobody_is_bound_to_the_place_alone() -> None:
    """Without a token, whoever sends there may send it."""
    decision = resolve("test", None, {"TEST_TELEMETRY_URL": URL})

    assert bound_to(decision, "", None) == f"anonymous {URL}"
    assert account_in(f"anonymous {URL} with spans") == account_in(f"authenticated {URL}") == ""
