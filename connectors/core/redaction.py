"""Secret-looking values taken out of text that was written by others: a pure function.

It errs towards taking out: a log line without its token still tells what happened. Every pattern runs in linear time.
"""

from __future__ import annotations

import re

MASK = "[redacted]"

_WORD = r"(?:pass|pwd|token|auth|authorization|session(?:id|[_.-]?id|[_.-]?key)?|cookie|csrf|signature|sig|salt|dsn|jwt|bearer|otp|pin)"
_WORDS = re.compile(
    r"(?i)pass(?:wd|word|phrase|code)|secret|credential|(?:api|access|private|signing|encryption|account|master)[_.-]?key|connection[_.-]?string|"
    rf"(?:^|[^A-Za-z]|db|my|user|admin|root|pg|aws|access|auth|refresh|bearer|client|api|app|id)(?:{_WORD})s?(?![A-Za-z])"
)
_PEM_WHOLE = re.compile(r"-----BEGIN ([A-Z0-9 ]{1,60})-----.*?(?:-----END [A-Z0-9 ]{1,60}-----|\Z)", re.DOTALL)
_PEM_END = re.compile(r"-----END [A-Z0-9 ]{1,60}-----")
_BASE64_LINE = re.compile(r"[A-Za-z0-9+/=\s]{0,100}")

_KEY = re.compile(r"[A-Za-z0-9_.-]+\Z")
_SEPARATOR = re.compile(r"[\"']?[ \t]{0,4}(?:=>|:=|[=:])[ \t]{0,4}")
_VALUE = re.compile(r"\[redacted\]|\"(?:[^\"\\\n]|\\.)*\"?|'(?:[^'\\\n]|\\.)*'?|[^\s\"',;&<>)\]}]+")
_LONGEST_KEY = 80
_OPTION = re.compile(r"(?i)(?P<key>--[a-z0-9_.-]{1,60})(?P<between>\s{1,4})(?P<value>\"[^\"\n]*\"?|'[^'\n]*'?|[^\s\"'-][^\s\"']*)")
_SCHEME = re.compile(r"(?i)\b(?P<scheme>bearer|basic|digest|negotiate|token|apikey)(?P<between>\s{1,4})(?P<value>[A-Za-z0-9._~+/=-]{6,})")
_AUTH_HEADER = re.compile(
    r"(?i)\b(?P<key>(?:proxy-)?authorization|(?:set-)?cookie|x-[a-z-]{0,40}(?:key|token|secret))(?P<between>[\"']?\s{0,4}[:=]\s{0,4})[^\n]+"
)
_URL_USER = re.compile(r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]{0,20}://)[^\s/@\"'<>]{1,400}@")
_KNOWN = re.compile(
    r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{5,}(?:\.[A-Za-z0-9_-]*)?"  # JSON web token
    r"|\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}"  # AWS
    r"|\b(?:gh[pousr]_|github_pat_|glpat-|xox[abeprs]-|npm_|pypi-|hf_|dop_v1_|shpat_|SG\.)[A-Za-z0-9_.-]{10,}"
    r"|\b(?:sk|rk|pk|whsec)[_-][A-Za-z0-9_-]{12,}"
    r"|\bAIza[A-Za-z0-9_-]{20,}|\bya29\.[A-Za-z0-9_-]{20,}"
    r"|\bagent_[A-Za-z0-9_.-]{12,}"  # our own
)
_DENSE = re.compile(r"(?<![A-Za-z0-9+_=-])[A-Za-z0-9+_-]{32,}={0,2}")


def redact(text: str) -> str:
    """``text`` with secret-looking values replaced by ``[redacted]``.

    Taken out: PEM blocks (also where only the end of one is there), passwords in URLs, values of secret-looking keys (``key=value``,
    ``"key": "value"``, ``--key value``), authorisation headers and cookies, JSON web tokens, keys of known services by their prefixes,
    and any long run of letters of both cases with digits. Hexadecimal digests and identifiers stay: they tell what happened to what.
    """
    text = _without_pem(text)
    text = _URL_USER.sub(lambda m: f"{m['scheme']}{MASK}@", text)
    text = _AUTH_HEADER.sub(lambda m: f"{m['key']}{m['between']}{MASK}", text)
    text = _SCHEME.sub(_scheme, text)
    text = _without_assigned(text)
    text = _OPTION.sub(_option, text)
    text = _KNOWN.sub(MASK, text)
    return _DENSE.sub(lambda m: MASK if _is_dense(m[0]) else m[0], text)


def _without_pem(text: str) -> str:
    text = _PEM_WHOLE.sub(MASK, text)
    if (end := _PEM_END.search(text)) is None:
        return text
    # The block begins before what we were given: its lines are the ones that hold nothing but base64.
    before, after = text[: end.start()].split("\n"), text[end.end() :]
    while before and _BASE64_LINE.fullmatch(before[-1]):
        before.pop()
    return "\n".join([*before, MASK + after])


def _is_secret(key: str) -> bool:
    # Camel case is taken apart, so that "author" and "tokenizer" are no secrets, while "dbPassword" and "accessToken" are.
    return bool(_WORDS.search(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key)))


def _option(match: re.Match[str]) -> str:
    return f"{match['key']}{match['between']}{_masked(match['value'])}" if _is_secret(match["key"]) else match[0]


def _without_assigned(text: str) -> str:
    """The values of secret-looking keys. From separator to separator, so that ``a=b:password=c`` is seen too and time stays linear."""
    done: list[str] = []
    taken = position = 0
    while separator := _SEPARATOR.search(text, position):
        position = separator.end()
        key = _KEY.search(text[max(taken, separator.start() - _LONGEST_KEY) : separator.start()])
        if key and _is_secret(key[0]) and (value := _VALUE.match(text, position)):
            done += [text[taken:position], _masked(value[0])]
            taken = position = value.end()
    return "".join([*done, text[taken:]])


def _masked(value: str) -> str:
    if value.startswith(MASK):
        return value
    quote = value[0] if value[:1] in ('"', "'") else ""
    return f"{quote}{MASK}{quote if len(value) > 1 and value.endswith(quote) else ''}"


def _scheme(match: re.Match[str]) -> str:
    # "token expired" and "basic authentication" are words, not credentials.
    value = match["value"]
    wordy = value.isalpha() and (value.islower() or value.istitle())
    return match[0] if wordy else f"{match['scheme']}{match['between']}{MASK}"


def _is_dense(value: str) -> bool:
    return any(c.isupper() for c in value) and any(c.islower() for c in value) and any(c.isdigit() for c in value)
