"""What a secret looks like: the names that secrets stand under, and their own shapes.

In: a name; a text. Out: what the name says of its value; the text with markers in it.
Does not know: events, what was seen before.

To mask too much is the right failure: a marker costs a reader a moment, a secret that
got out cannot be called back. A marker says what was there, and nothing of it.

Every pattern is linear: what repeats is possessive, or bounded, or cannot begin inside
its own match. What asks for the most time is asked last, and only of a text that holds
the characters without which it cannot match.
"""

from __future__ import annotations

import base64
import enum
import re
from collections.abc import Iterable

from trimaran._pipeline.unnamed import mask_commands, mask_prose

__all__ = ["NAMED_MARKER", "KeyKind", "key_kind", "mask_text"]

NAMED_MARKER = "[masked:secret]"  # known by its key
_SHAPE_MARKER = "[masked:token]"  # known by its shape
_PEM_MARKER = "[masked:key]"
_USER_MARKER = "[masked:credentials]"
_EMAIL_MARKER = "[masked:email]"
_HOME_MARKER = "~"


# --- keys: is what stands under this name a secret?


class KeyKind(enum.IntEnum):
    """What a name says of the value that stands under it; the higher, the stricter."""

    PLAIN = 0  # no secret
    COUNTED = 1  # a secret if it is text; numbers are counts of such things
    HIDDEN = 2  # a secret, whatever its type


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

_SECRET_WORDS = _words(
    "secret token authorization cookie credential bearer pwd jwt otp totp mnemonic"
)
_SECRET_ENDINGS = ("secret", "token", "cookie")
"""Of words in one piece, like ``authtoken``; ``secretary`` and ``tokenizer`` go on."""

_LAST_WORDS = frozenset({"auth", "oauth", "pass", "pw"})
"""Secret at the end of a name only: ``smtp_pass``, but not ``auth_type`` or ``pass_rate``."""

_COMPOUNDS = re.compile(
    r"password(?!less)|passwd|passphrase|passcode|connectionstring|(?:seed|recovery)phrase"
    r"|(?:auth|authorization|recovery|backup)code"
    r"|(?:access|account|admin|api|app|auth|client|consumer|deploy|encryption|hmac|license|master"
    r"|private|root|secret|service|session|shared|signing|ssh|storage|subscription)key(?!board)"
)
"""In a name whose words were joined."""

_TOKEN_KINDS = _words(
    "access api auth bearer bot csrf id oauth personal refresh secret security xsrf"
)
"""What makes a secret even of the plural: ``tokens`` are counted, ``access_tokens`` are not."""

_DESCRIPTIONS = _words(
    "age at budget changed cost count counts created disabled enabled endpoint error exceeded"
    " exception exists expired expires expiration expiry failed file found ids in index invalid"
    " kind length limit limits method mismatch missing mode ms name on path policy position"
    " present price provider rate ratio required seconds set size source status strength ttl type"
    " updated uri url usage used valid version"
    # The same of files: token.py:12
    " cs go java js json jsx kt log md php py rb rs sh sql swift toml ts tsx txt yaml yml"
)
"""Last words of names that say something about a secret: ``password_reset_required``."""

_QUERY_WORDS = _words("code key sig signature sas pass pw")
"""Secret as the last word of a parameter of a URL."""


_VARIABLE = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*_KEY\Z")
_OPEN_KEYS = _words(
    "cache candidate composite foreign group hash idempotency index join map object partition"
    " primary public range registry row sort unique"
)
"""What makes a key of another kind than one that opens something."""


def key_kind(name: str) -> KeyKind:
    """Whether a secret stands under *name*, in snake, kebab, camel or dotted case."""
    words = [word.lower() for word in _WORD.findall(name)]
    if not words or words[-1] in _DESCRIPTIONS:
        return KeyKind.PLAIN
    if _COMPOUNDS.search("".join(words)):
        return KeyKind.COUNTED if words[-1].endswith("s") else KeyKind.HIDDEN
    if _VARIABLE.match(name) and _OPEN_KEYS.isdisjoint(words):
        return KeyKind.COUNTED  # of the environment: STRIPE_KEY
    if words[-1] in _LAST_WORDS:
        return KeyKind.COUNTED
    for index, word in enumerate(words):
        single = word.removesuffix("s")
        if single not in _SECRET_WORDS and not single.endswith(_SECRET_ENDINGS):
            continue
        named = index > 0 and words[index - 1] in _TOKEN_KINDS
        if word == "tokens" and not named:
            continue
        if word != single or (word == "token" and len(words) > 1 and not named):
            return KeyKind.COUNTED
        return KeyKind.HIDDEN
    return KeyKind.PLAIN


# --- texts

_ASSIGNED = re.compile(
    r"""
    (?<![\w.\-]) (?<!\[masked:)
    (?:
        (?: (?P<before>[A-Za-z]++)[ ] )?   # "API key: ..."
        (?P<key>[\w.\-]++)
        (?: \\*+["'`]?\]?+ \s*+ (?: =>|:=|={1,3}|:(?!:|//)|%3[AaDd] ) \s*+ | (?P<element>>)(?=\S) )
    |
        (?P<flag>-[\w.\-]++)               # "--token abc", "'--token', 'abc'"
        (?: ["'],\s*+ | \s++ ) (?!--)
    )
    """,
    re.VERBOSE,
)
_QUOTED = re.compile(
    r"""
    [bBrRuUfF]{0,2} (?P<escape>\\*+) (?P<quote>["'`])
    (?P<text> (?: [^\\"'`] | (?!(?P=escape)(?P=quote)) \\*+. )*+ )
    """,
    re.VERBOSE | re.DOTALL,
)
_BRACKETED = re.compile(r"\{[^{}]*+\}|\[[^\[\]]*+\]|[{\[].*", re.DOTALL)
_BARE = re.compile(
    r"""
    (?: [^\s&,;] | [&,;] (?! \s | \Z | ["'{\[\\]*+[\w.\-]{1,64}["'\\]*+\s?[=:] ) )++
    """,
    re.VERBOSE,
)
_LINE = re.compile(r"[^\r\n]++")
_LINE_UP_TO = {quote: re.compile(rf"[^\r\n{quote}]++") for quote in "\"'`"}
_LINE_WORDS = _words("authorization cookie cookies mnemonic passphrase phrase")
"""Last words of keys whose value may hold spaces."""

_BEFORE_WORDS = _words("key keys code codes phrase string")
"""Words that another word before them, apart by a space, may make a secret key."""

_HARMLESS = _words("null none nil undefined true false")
_NUMBER = re.compile(r"[+\-]?\d[\d._]*+%?\Z")
_CLOSING = frozenset("\"'`.:)}>]")

_PEM = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,10}-----"
    r"(?:.*?-----END [A-Z0-9 ]{0,60}-----|.*)",
    re.DOTALL,
)
_BEARER = re.compile(
    r"([Bb]earer\s{1,4}+|BEARER\s{1,4}+)"
    r"(?:(?=[A-Za-z]?[a-z\-._~+/]{0,64}[0-9A-Z])[\w\-.~+/]{6,}+|[\w\-.~+/]{20,}+)=*+"
)
_BASIC = re.compile(r"([Bb]asic\s{1,4}+|BASIC\s{1,4}+)([A-Za-z0-9+/]{4,}+)=*+")
_USER_INFO = re.compile(
    r"""
    (?<=://) (?!git@)
    (?:
        [^\s/?#"'<>`\\]*@
    |
        [^\s/@:]{1,128}+ : (?!\d{1,5}[/?#]) [^\s@"'<>]{1,256}+
        (?<!\[masked:credentials\]) @    # else each round would take a piece of what is before
    )
    """,
    re.VERBOSE,
)
_DOMAIN = r"(?:[\w\-]++\.)+[^\W\d_]{2,24}"
_USER_AT_HOST = re.compile(
    r"(?<![\w.\-])(?!mailto:|masked:)[\w.\-]++:"
    rf"""(?!//|[\w.+\-]++@{_DOMAIN})[^\s:@/"'<>`\\]++@(?!sha\d)(?=[A-Za-z\[])"""
)
_ADDRESS = re.compile(rf"(?<![\w.+\-])(?!git@)[\w.+\-]++(?:@|%40){_DOMAIN}")
_NAME = r"""[^\\/\s:;,"'`<>|()\[\]{}*?=&]+"""
_HOME_OF = re.compile(
    rf"(?:/|\\/)(?:home|Users)(?:/|\\/){_NAME}"
    r"|(?<![A-Za-z])[A-Za-z]:(?P<slash>\\{1,4}|/)[Uu]sers(?P=slash)"
    rf"(?:[^\\/:*?\"<>|\r\n]{{1,64}}(?=[\\/])|{_NAME})"
    rf"|\\{{1,4}}(?:home|Users)\\{{1,4}}{_NAME}"
)


def _begin(prefix: str) -> str:
    r"""*prefix* where no letter stands before it, other than of an escape: ``\n``, ``%3D``."""
    return (
        rf"{prefix}(?:(?<![A-Za-z]{prefix})|(?<=\\[nrt]{prefix})|(?<=%[0-9A-F][0-9A-F]{prefix})"
        rf"|(?<=\dm{prefix}))"
    )


def _by_first_letter(shapes: Iterable[str]) -> str:
    """One pattern for all of *shapes*, which takes half the time of a flat list.

    That each begins with a letter of its own lets a search skip the others at once.
    """
    groups: dict[str, list[str]] = {}
    for shape in shapes:
        groups.setdefault(shape[0], []).append(shape[1:])
    return "|".join(f"{letter}(?:{'|'.join(rests)})" for letter, rests in groups.items())


_SHAPES = re.compile(
    _by_first_letter(
        (
            _begin("eyJ") + r"[\w\-]{16,}+(?:\.[\w\-+/=]*+){0,4}",  # JWT, any base64 of JSON
            _begin("sk-") + r"(?=[a-z\-_]{0,64}[0-9A-Z])[\w\-]{16,}+",  # OpenAI, Anthropic, ...
            r"sk_(?:live|test|prod)_\w{10,}+",  # Stripe
            r"rk_(?:live|test|prod)_\w{10,}+",
            r"pk_(?:live|test|prod)_\w{10,}+",
            r"whsec_[\w+/]{16,}+=*+",
            r"gh[oprsu]_[A-Za-z0-9]{20,}+",  # GitHub
            r"github_pat_\w{20,}+",
            r"gl(?:pat|ptt|rt|dt|cbt|ft|soat|imt|agent|oas|ffct)-[\w\-.]{16,}+",  # GitLab
            r"xox[a-z](?:\.xox[a-z])?-[\w\-]{16,}+",  # Slack
            r"xapp-\d-[\w\-]{10,}+",
            r"hooks\.slack\.com/services/[\w/]{8,}+",
            r"discord(?:app)?\.com/api/webhooks/[\w/\-]{8,}+",
            r"A(?:KI|SI|BI|CC)A[0-9A-Z]{16,}+",  # AWS
            r"AIza[\w\-]{30,}+",  # Google
            r"ya29\.[\w\-.]{16,}+",
            r"GOCSPX-[\w\-]{16,}+",
            r"npm_[A-Za-z0-9]{30,}+",
            r"pypi-AgE[\w\-]{16,}+",
            r"hf_[A-Za-z0-9]{20,}+",  # Hugging Face
            r"gsk_[A-Za-z0-9]{20,}+",  # Groq
            r"xai-[A-Za-z0-9]{20,}+",
            r"r8_[A-Za-z0-9]{30,}+",  # Replicate
            r"pplx-[A-Za-z0-9]{20,}+",  # Perplexity
            r"nvapi-[\w\-]{20,}+",  # NVIDIA
            r"SG\.[\w\-]{16,}+(?:\.[\w\-]++)?",  # SendGrid
            r"SK[0-9a-f]{32}",  # Twilio
            r"AC[0-9a-f]{32}",
            r"dapi[0-9a-f]{32}",  # Databricks
            r"dop_v1_[0-9a-f]{32,}+",  # DigitalOcean
            r"dckr_pat_[\w\-]{20,}+",  # Docker
            r"shp[a-z]{2}_[0-9a-fA-F]{16,}+",  # Shopify
            r"lin_api_[A-Za-z0-9]{20,}+",  # Linear
            r"glsa_[A-Za-z0-9]{20,}+\w*+",  # Grafana
            r"hvs\.[\w\-]{16,}+",  # Vault
            r"AGE-SECRET-KEY-1[A-Z0-9]{20,}+",
        )
    )
)
_SHORTEST_SHAPE = 16
"""No shape is shorter, in characters."""

_DIGITS_FIRST = re.compile(r"\d{6,12}:AA[\w\-]{30,}+|1//0[\w\-]{20,}+")  # Telegram, Google


_CONTEXT = re.compile(r"[\s:=@/\\%,<]")
"""Without one of these, only the shape of a text can give a secret away."""

_NAME_HINTS = _words(
    "auth backup bearer code= connection cookie credential jwt key mnemonic otp pass pw recovery"
    " sas= secret seed sig= signature= token"
)
"""Without one of these, in lower case, no name of a secret is in a text."""


_MOST_ROUNDS = 8
"""A marker may bring together what stood apart; random texts took four rounds at most."""


def mask_text(text: str, home: str | None = None) -> str:
    """*text* with markers in place of secrets, e-mail addresses and home directories.

    *home* is a home directory to mask beside those of the usual form. The text comes back
    as it was where there is nothing to mask, and masking twice is masking once.
    """
    masked = _mask_once(text, home)
    rounds = 1
    while masked != text and rounds < _MOST_ROUNDS:
        text, masked = masked, _mask_once(masked, home)
        rounds += 1
    return masked


def _mask_once(text: str, home: str | None) -> str:
    if not text.isidentifier() and _CONTEXT.search(text) is not None:
        text = _mask_by_context(text, home)
    elif len(text) < _SHORTEST_SHAPE:
        return text
    return _SHAPES.sub(_SHAPE_MARKER, text)


def _mask_by_context(text: str, home: str | None) -> str:
    """Mask what is known by what stands around it, or has its own punctuation."""
    if "-----BEGIN" in text:
        text = _PEM.sub(_PEM_MARKER, text)
    lowered = text.lower()
    if any(hint in lowered for hint in _NAME_HINTS):
        text = mask_prose(_mask_assigned(text), NAMED_MARKER)
    text = mask_commands(text, lowered, NAMED_MARKER)
    if "bearer" in lowered:
        text = _BEARER.sub(rf"\1{_SHAPE_MARKER}", text)
    if "basic" in lowered:
        text = _BASIC.sub(_basic_masked, text)
    if ":AA" in text or "1//0" in text:
        text = _DIGITS_FIRST.sub(_SHAPE_MARKER, text)
    if "@" in text or "%40" in text:
        text = _mask_people(text)
    if home is not None:
        text = _mask_home(text, home.rstrip("/\\"))
    if "home" in lowered or "users" in lowered:
        text = _HOME_OF.sub(_HOME_MARKER, text)
    return text


def _mask_people(text: str) -> str:
    """Mask the users of URLs, with their passwords, and e-mail addresses."""
    if ":" in text:
        text = _USER_INFO.sub(f"{_USER_MARKER}@", text)
        text = _USER_AT_HOST.sub(f"{_USER_MARKER}@", text)
    return _ADDRESS.sub(_EMAIL_MARKER, text)


def _mask_assigned(text: str) -> str:
    """Mask the values that stand in a text after the name of a secret."""
    parts: list[str] = []
    done = position = 0
    while found := _ASSIGNED.search(text, position):
        position = found.end()
        name_start = found.start("key" if found["flag"] is None else "flag")
        before = text[name_start - 1 : name_start]
        kind = _assigned_kind(found, before)
        if kind is KeyKind.PLAIN:
            continue
        start, end = _value_span(found, before)
        if not _is_shown(text[start:end], kind):
            parts += (text[done:start], NAMED_MARKER)
            done = position = end
    return "".join((*parts, text[done:]))


def _assigned_kind(found: re.Match[str], before: str) -> KeyKind:
    """What the name that was found says, by itself or with what stands *before* it."""
    name = found["key"] or found["flag"]
    if found["element"] and before != "<":
        return KeyKind.PLAIN
    if before in {"?", "&"} and _last_word(name) in _QUERY_WORDS:
        return KeyKind.HIDDEN
    kind = key_kind(name)
    if kind is KeyKind.PLAIN and before == "\\":  # the n of \n is no part of the name
        return key_kind(name[1:])
    if kind is KeyKind.PLAIN and found["before"] and name.lower() in _BEFORE_WORDS:
        return key_kind(f"{found['before']} {name}")
    return kind


def _last_word(name: str) -> str:
    words = _WORD.findall(name)
    return words[-1].lower() if words else ""


def _value_span(found: re.Match[str], before: str) -> tuple[int, int]:
    """Where the value after a name starts and ends, without its quotes."""
    text, start = found.string, found.end()
    if quoted := _QUOTED.match(text, start):
        return quoted.span("text")
    if found["element"]:
        end = text.find("<", start)
        return start, len(text) if end < 0 else end
    inner = _end(_BRACKETED, text, start)
    if found["key"] and _last_word(found["key"]) in _LINE_WORDS:
        return start, _end(_LINE_UP_TO.get(before, _LINE), text, inner)
    end = _end(_BARE, text, inner)
    while end > inner and text[end - 1] in _CLOSING:
        end -= 1
    return start, end


def _end(pattern: re.Pattern[str], text: str, start: int) -> int:
    """Where a match of *pattern* at *start* ends; *start* if there is none."""
    found = pattern.match(text, start)
    return start if found is None else found.end()


def _is_shown(value: str, kind: KeyKind) -> bool:
    """Whether a text that stands under a secret's name says no secret."""
    if not value or value.lower() in _HARMLESS:
        return True
    return kind is KeyKind.COUNTED and _NUMBER.match(value) is not None


def _basic_masked(found: re.Match[str]) -> str:
    """*found* with its base64 masked, if that is ``user:password``."""
    encoded = found[2]
    try:
        text = base64.b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
    except ValueError:
        return found[0]
    return found[1] + _SHAPE_MARKER if ":" in text else found[0]


def _mask_home(text: str, home: str) -> str:
    """Mask *home*, and its forms with other slashes, where it is no part of a longer name."""
    if "/" in home or "\\" in home:
        for form in {home, home.replace("\\", "\\\\"), home.replace("\\", "/")}:
            if form in text:
                text = re.sub(re.escape(form) + r"(?![.\-]?\w)", _HOME_MARKER, text)
    return text
