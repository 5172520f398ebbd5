"""Signing in through an OpenID provider: authorization code flow with PKCE (S256), state and nonce.

What a sign-in needs until the browser comes back from the provider travels in a cookie, encrypted under a key of this process: nothing is
kept for whoever never comes back, and a restart in between makes people begin again. Each is good for ten minutes and for one return.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import ssl
import urllib.parse
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import httpx2
from authlib.integrations.base_client import OAuthError  # type: ignore[import-untyped] # Authlib ships no types
from authlib.integrations.httpx_client import AsyncOAuth2Client  # type: ignore[import-untyped] # as above
from authlib.oidc.core import CodeIDToken  # type: ignore[import-untyped] # as above
from authlib.oidc.discovery import get_well_known_url  # type: ignore[import-untyped] # as above
from cryptography.fernet import Fernet, InvalidToken
from joserfc import jwt
from joserfc.errors import BadSignatureError, ClaimError, InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet

from app.auth.oidc_roles import claim_values
from app.errors import IdentityProviderError, TooManyRequestsError, UnauthenticatedError
from app.settings import Settings

CALLBACK_PATH = "/sign-in/oidc/callback"
PENDING_LIFETIME = 600
"""Seconds that somebody may take at the provider."""
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519")
"""Signatures that an ID token may have: of public keys only, for a provider's secret would have to be shared, and ``none`` is none."""
LEEWAY = 60
"""Seconds by which the provider's clock may differ."""
TIMEOUT = 10.0
"""Seconds that the provider has for each answer."""
METADATA_LIFETIME = 3600.0
KEYS_LIFETIME = 3600.0
REFETCH_EVERY = 60.0
"""Seconds after which a signature by an unknown key has the keys fetched anew once more."""
RETRY_AFTER = 5.0
"""Seconds for which a provider that failed is left alone."""
_MOST_RETURNS = 10_000
_LONGEST_TARGET = 1500  # characters: a browser drops a cookie of more than 4096 bytes
_LONGEST_SUBJECT = 255


@dataclass(frozen=True, slots=True)
class Pending:
    """A sign-in that has gone to the provider: what proves that the return belongs to it, and the page that was wanted."""

    state: str
    nonce: str
    verifier: str
    target: str


class OidcProvider:
    """The provider of the settings.

    Args:
        settings: the platform's, with ``oidc_issuer``.
        clock: Unix seconds.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._issuer = settings.oidc_issuer
        self._redirect_uri = settings.resolved_public_url() + CALLBACK_PATH
        self._fernet = Fernet(Fernet.generate_key())
        self._returned: OrderedDict[str, float] = OrderedDict()
        self._tls = ssl.create_default_context()
        self._fetching = asyncio.Lock()
        self._metadata: tuple[dict[str, Any], float] | None = None
        self._keys: tuple[KeySet, float] | None = None
        self._failed: tuple[str, float] | None = None

    @property
    def name(self) -> str:
        """What people call the provider."""
        return self._settings.oidc_name or urllib.parse.urlsplit(self._issuer).hostname or self._issuer

    async def begin(self, target: str) -> tuple[str, str]:
        """A new sign-in, after which ``target`` (a path of ours) is wanted: the URL to send the browser to, and the cookie's value.

        Raises:
            IdentityProviderError: the provider does not answer, or not as it should.
        """
        endpoint = _endpoint(await self._discover(), "authorization_endpoint")
        kept = target if len(target) <= _LONGEST_TARGET else "/"
        pending = Pending(secrets.token_urlsafe(32), secrets.token_urlsafe(32), secrets.token_urlsafe(48), kept)
        async with self._client() as client:
            url, _ = client.create_authorization_url(
                endpoint, state=pending.state, code_verifier=pending.verifier, nonce=pending.nonce, redirect_uri=self._redirect_uri
            )
        sealed = self._fernet.encrypt_at_time(json.dumps(asdict(pending)).encode(), int(self._clock()))
        return str(url), sealed.decode()

    def pending(self, sealed: str, state: str) -> Pending:
        """The sign-in that a return from the provider belongs to; it is used up by that.

        Args:
            sealed: the cookie's value.
            state: the parameter of the return.

        Raises:
            UnauthenticatedError: it was not begun by this browser, too long ago, or has returned before.
        """
        now = self._clock()
        try:
            opened = self._fernet.decrypt_at_time(sealed.encode(), PENDING_LIFETIME, int(now))
        except (InvalidToken, ValueError):
            raise UnauthenticatedError("this sign-in was not begun in this browser, or too long ago: begin it again") from None
        pending = Pending(**json.loads(opened))
        if not hmac.compare_digest(pending.state.encode(), state.encode()):
            raise UnauthenticatedError("this sign-in is not the one that this browser began last: begin it again")
        if pending.state in self._returned:
            raise UnauthenticatedError("this sign-in has been completed before: begin it again")
        while self._returned and (len(self._returned) >= _MOST_RETURNS or next(iter(self._returned.values())) < now - PENDING_LIFETIME):
            self._returned.popitem(last=False)
        self._returned[pending.state] = now
        return pending

    async def finish(self, pending: Pending, query: Mapping[str, str]) -> dict[str, Any]:
        """The verified claims of whoever comes back from the provider with ``query``; ``sub`` is among them.

        Raises:
            UnauthenticatedError: the provider refused them, or what it says cannot be trusted; the reason says what.
            IdentityProviderError: as :meth:`begin`.
        """
        if "error" in query:
            raise UnauthenticatedError(self._refusal(query["error"], query.get("error_description", "")))
        if query.get("iss", self._issuer) != self._issuer:
            raise UnauthenticatedError("the answer comes from another provider than the one that was asked")
        metadata = await self._discover()
        token = await self._exchange(metadata, query.get("code", ""), pending.verifier)
        id_token, access_token = token.get("id_token"), str(token.get("access_token") or "")
        if not isinstance(id_token, str):
            raise IdentityProviderError(f"{self.name} answered without an ID token; is openid among the scopes that it allows?")
        claims = await self._verify(id_token, pending.nonce, access_token)
        if claim_values(claims, self._settings.oidc_role_claim) is None and metadata.get("userinfo_endpoint") and access_token:
            claims = {**await self._user_info(metadata, access_token, claims["sub"]), **claims}
        return claims

    async def end_session_url(self, return_to: str) -> str:
        """Where somebody signs out at the provider too, coming back to the path ``return_to``; empty where it has no such page."""
        try:
            endpoint = _endpoint(await self._discover(), "end_session_endpoint")
        except IdentityProviderError:
            return ""
        back = self._settings.resolved_public_url() + return_to
        query = urllib.parse.urlencode({"client_id": self._settings.oidc_client_id, "post_logout_redirect_uri": back})
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{query}"

    async def _exchange(self, metadata: Mapping[str, Any], code: str, verifier: str) -> dict[str, Any]:
        if not code:
            raise UnauthenticatedError(f"{self.name} sent no authorization code")
        endpoint = _endpoint(metadata, "token_endpoint")
        try:
            async with asyncio.timeout(TIMEOUT), self._client(_client_authentication(metadata, self._settings)) as client:
                answer = await client.fetch_token(
                    endpoint, grant_type="authorization_code", code=code, code_verifier=verifier, redirect_uri=self._redirect_uri
                )
        except OAuthError as exc:
            raise UnauthenticatedError(self._refusal(str(exc.error), str(exc.description or ""))) from exc
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as exc:
            raise self._failure(exc) from exc
        return dict(answer)

    async def _verify(self, id_token: str, nonce: str, access_token: str) -> dict[str, Any]:
        options = {
            "iss": {"essential": True, "value": self._issuer},
            "aud": {"essential": True, "value": self._settings.oidc_client_id},
            "sub": {"essential": True},
        }
        params = {"nonce": nonce, "client_id": self._settings.oidc_client_id, "access_token": access_token}
        try:
            token = await self._decode(id_token)
            claims = CodeIDToken(token.claims, token.header, options, params)
            claims.validate(int(self._clock()), LEEWAY)
        except ClaimError as exc:
            raise UnauthenticatedError(f"the ID token of {self.name} is refused: {exc.error.replace('_', ' ')} ({exc.claim})") from exc
        except (JoseError, ValueError, TypeError) as exc:
            what = exc.error.replace("_", " ") if isinstance(exc, JoseError) else "it cannot be read"
            raise UnauthenticatedError(f"the ID token of {self.name} is refused: {what}") from exc
        if len(claims["sub"]) > _LONGEST_SUBJECT:
            raise UnauthenticatedError(f"the ID token of {self.name} is refused: its subject is longer than {_LONGEST_SUBJECT} characters")
        return dict(claims)

    async def _decode(self, id_token: str) -> jwt.Token:
        try:
            return jwt.decode(id_token, await self._key_set(), algorithms=ALGORITHMS)
        except (InvalidKeyIdError, BadSignatureError):
            if self._keys is None or self._clock() - self._keys[1] < REFETCH_EVERY:
                raise
        return jwt.decode(id_token, await self._key_set(anew=True), algorithms=ALGORITHMS)

    async def _user_info(self, metadata: Mapping[str, Any], access_token: str, subject: str) -> dict[str, Any]:
        found = await self._fetch(_endpoint(metadata, "userinfo_endpoint"), {"Authorization": f"Bearer {access_token}"})
        if found.get("sub") != subject:
            raise UnauthenticatedError(f"{self.name} told of another user than the one who signed in")
        return found

    async def _discover(self) -> dict[str, Any]:
        """The provider's metadata, at most an hour old."""
        async with self._fetching:
            if self._metadata is None or self._clock() - self._metadata[1] >= METADATA_LIFETIME:
                found = await self._fetch_guarded(str(get_well_known_url(self._issuer, external=True)))
                if found.get("issuer") != self._issuer:
                    told = str(found.get("issuer"))[:200]
                    raise IdentityProviderError(f"{self.name} calls itself {told!r}: IRCA_OIDC_ISSUER must be spelt like that")
                self._metadata = (found, self._clock())
            return self._metadata[0]

    async def _key_set(self, *, anew: bool = False) -> KeySet:
        """The provider's keys, at most an hour old, or fetched now."""
        endpoint = _endpoint(await self._discover(), "jwks_uri")
        async with self._fetching:
            age = self._clock() - self._keys[1] if self._keys else KEYS_LIFETIME
            if self._keys is None or age >= (REFETCH_EVERY if anew else KEYS_LIFETIME):
                document = await self._fetch_guarded(endpoint)
                try:
                    keys = KeySet.import_key_set({"keys": document["keys"]})
                except (JoseError, KeyError, TypeError, ValueError) as exc:
                    raise IdentityProviderError(f"the keys of {self.name} cannot be read") from exc
                self._keys = (keys, self._clock())
            return self._keys[0]

    async def _fetch_guarded(self, url: str) -> dict[str, Any]:
        """Fetch, unless that failed a moment ago: people who try again shall not all wait for a provider that is away."""
        if self._failed is not None and self._clock() - self._failed[1] < RETRY_AFTER:
            raise IdentityProviderError(self._failed[0])
        try:
            found = await self._fetch(url)
        except IdentityProviderError as exc:
            self._failed = (exc.reason, self._clock())
            raise
        self._failed = None
        return found

    async def _fetch(self, url: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        try:
            async with asyncio.timeout(TIMEOUT), self._client() as client:
                response = await client.request("GET", url, headers={"Accept": "application/json", **(headers or {})}, withhold_token=True)
                response.raise_for_status()
                document = response.json()
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as exc:
            raise self._failure(exc) from exc
        if not isinstance(document, dict):
            raise IdentityProviderError(f"{self.name} does not answer as an OpenID provider does")
        return document

    def _client(self, authentication: str = "none") -> Any:
        secret = self._settings.oidc_client_secret.get_secret_value()
        return AsyncOAuth2Client(
            client_id=self._settings.oidc_client_id,
            client_secret=secret if authentication != "none" else None,
            token_endpoint_auth_method=authentication,
            scope=self._settings.oidc_scopes,
            code_challenge_method="S256",
            timeout=TIMEOUT,
            verify=self._tls,
            follow_redirects=False,
            trust_env=self._issuer.startswith("https://"),  # a provider on this machine is reached directly
        )

    def _failure(self, exc: Exception) -> IdentityProviderError:
        if isinstance(exc, httpx2.HTTPStatusError):
            return IdentityProviderError(f"{self.name} answered {exc.response.status_code}; try again later")
        if isinstance(exc, TimeoutError | httpx2.TimeoutException):
            return IdentityProviderError(f"{self.name} did not answer within {TIMEOUT:g} s; try again later")
        if isinstance(exc, httpx2.TransportError | OSError):
            return IdentityProviderError(f"{self.name} cannot be reached; try again later")
        return IdentityProviderError(f"{self.name} does not answer as an OpenID provider does")

    def _refusal(self, error: str, description: str) -> str:
        if error == "access_denied":
            return f"{self.name} did not let you in" + (f": {_shown(description)}" if description else "")
        return f"{self.name} refused the sign-in: {_shown(error)}" + (f" ({_shown(description)})" if description else "")


def refused_by_guess(exc: Exception) -> bool:
    """Whether a failed sign-in may have been an attempt to forge one: neither the provider's failure nor the limit's own answer."""
    return not isinstance(exc, IdentityProviderError | TooManyRequestsError)


def _endpoint(metadata: Mapping[str, Any], name: str) -> str:
    """An endpoint of the provider: by HTTPS, or by HTTP where the provider itself is (on this machine)."""
    url = metadata.get(name)
    schemes = ("https://",) if str(metadata["issuer"]).startswith("https://") else ("https://", "http://")
    if not isinstance(url, str) or not url.startswith(schemes):
        raise IdentityProviderError(f"the OpenID provider names no usable {name}")
    return url


def _client_authentication(metadata: Mapping[str, Any], settings: Settings) -> str:
    """How the platform proves itself to the token endpoint: Basic, as is usual, unless the provider takes the secret in the body only."""
    if not settings.oidc_client_secret.get_secret_value():
        return "none"
    methods = metadata.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
    return "client_secret_post" if "client_secret_post" in methods and "client_secret_basic" not in methods else "client_secret_basic"


def _shown(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:200]
