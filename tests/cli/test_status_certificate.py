"""Who a certificate is for, and who issued it."""

from __future__ import annotations

import ssl

import trustme
from hypothesis import given
from hypothesis import strategies as st

from trimaran.cli.status_certificate import Names, names_in


def der_of(blob: trustme.Blob) -> bytes:
    """A certificate as it comes over a connection."""
    return ssl.PEM_cert_to_DER_cert(blob.bytes().decode())


AUTHORITY = trustme.CA(organization_name="An Authority", organization_unit_name="of tests")
CERTIFICATE = der_of(
    AUTHORITY.issue_cert(
        "collector.test", common_name="collector.test", organization_name="Us"
    ).cert_chain_pems[0]
)


def test_names_are_found() -> None:
    """The common name, or else the organization; of both parties."""
    assert names_in(CERTIFICATE) == Names("collector.test", "An Authority")
    assert names_in(der_of(AUTHORITY.cert_pem)) == Names("An Authority", "An Authority")
    assert str(names_in(CERTIFICATE)) == "of collector.test, issued by An Authority"


def test_a_long_name() -> None:
    """Its length takes more than a byte."""
    name = "n" * 60
    authority = trustme.CA(organization_name=name, organization_unit_name="u" * 60)
    issued = authority.issue_cert("h", common_name="c" * 64, organization_name="o" * 64)

    assert names_in(der_of(issued.cert_chain_pems[0])) == Names("c" * 64, name)


def test_what_has_no_names() -> None:
    """Is said to have none."""
    assert names_in(b"") == Names("", "")
    assert str(Names("", "")) == "of nobody, issued by nobody"


@given(st.binary(max_size=64))
def test_any_bytes_have_names_or_none(content: bytes) -> None:
    """Who listens may send anything for a certificate."""
    assert isinstance(names_in(content), Names)


@given(st.integers(0, len(CERTIFICATE) - 1), st.integers(0, 255))
def test_a_damaged_certificate(place: int, byte: int) -> None:
    """With one byte changed, or cut off there, it is read without an error all the same."""
    damaged = CERTIFICATE[:place] + bytes([byte]) + CERTIFICATE[place + 1 :]

    assert isinstance(names_in(damaged), Names)
    assert names_in(CERTIFICATE[:place]) == Names("", "")
