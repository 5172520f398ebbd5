"""The platform's settings: environment variables ``IRCA_*``, documented here once (docs/reference/settings.md is generated)."""

from __future__ import annotations

import ipaddress
import urllib.parse
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

RoleName = Literal["viewer", "operator", "admin"]


class GrantedRole(BaseModel):
    """What one value of the OpenID provider's role claim grants: a role, in the environments whose names meet a pattern."""

    model_config = {"extra": "forbid", "frozen": True}

    role: RoleName
    environments: Annotated[list[Annotated[str, Field(min_length=1, max_length=63)]], Field(min_length=1)] = ["*"]


class Settings(BaseSettings):
    """Everything an operator can set. Durations are seconds, sizes bytes."""

    model_config = SettingsConfigDict(env_prefix="IRCA_", extra="ignore", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="Port to listen on; 0 picks a free one.")
    public_url: str = Field(
        "",
        description="URL under which agents and browsers reach the platform, as printed commands carry it; empty means http://localhost:PORT.",
    )
    data_dir: Path = Field(Path("data"), description="Directory for everything that is kept: database, metrics, secrets, logs.")
    database_url: str = Field("", description="SQLAlchemy URL of the state database; empty means SQLite in the data directory.")
    admin_api_key: SecretStr = Field(
        SecretStr(""), description="Presets the first admin API key (at least 20 characters); empty generates one and shows it once."
    )
    tls_certificate: Path | None = Field(None, description="PEM certificate chain; with it the platform itself serves HTTPS.")
    tls_key: Path | None = Field(None, description="PEM private key that belongs to IRCA_TLS_CERTIFICATE.")
    trusted_proxies: str = Field(
        "127.0.0.1, ::1",
        description="Addresses and networks (CIDR, separated by commas) of reverse proxies whose X-Forwarded-For and X-Forwarded-Proto are "
        "believed; empty believes nobody.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe level that is logged.")
    log_format: Literal["text", "json"] = Field("text", description="Shape of the log lines on standard error.")

    package_keys: Path | None = Field(
        None, description="Directory of public keys (PEM) that may sign published releases; empty means keys/trusted in the data directory."
    )
    packages_self_built: bool = Field(
        True, description="Whether the platform builds and signs a package for machines like its own while no release is published."
    )

    enrolment_token_ttl: Annotated[float, Field(ge=60)] = Field(86_400.0 * 30, description="Life of a new enrolment token.")
    heartbeat_interval: Annotated[float, Field(ge=1, le=300)] = Field(30.0, description="Heartbeat interval that agents are directed to.")
    archive_after: Annotated[float, Field(ge=60)] = Field(86_400.0 * 14, description="Silence after which an instance is archived.")
    heartbeat_flush_interval: Annotated[float, Field(gt=0, le=30)] = Field(1.0, description="Pause between two bulk writes of heartbeats.")
    status_sweep_interval: Annotated[float, Field(gt=0, le=60)] = Field(2.0, description="Pause between two looks for status changes.")

    max_body_bytes: Annotated[int, Field(ge=65_536)] = Field(1_048_576, description="Largest request body as it travels.")
    max_decompressed_bytes: Annotated[int, Field(ge=65_536)] = Field(20_971_520, description="Largest request body after decompression.")
    metrics_retention: Annotated[float, Field(ge=3600)] = Field(86_400.0 * 30, description="Age past which raw samples are dropped.")
    metrics_rollup_retention: Annotated[float, Field(ge=3600)] = Field(86_400.0 * 400, description="Age past which rollups are dropped.")
    metrics_disk_budget: Annotated[int, Field(ge=67_108_864)] = Field(
        10_737_418_240, description="Largest size of the metric store; the oldest days are dropped first."
    )
    events_retention: Annotated[float, Field(ge=3600)] = Field(86_400.0 * 90, description="Age past which events are dropped.")
    webhook_allowed_networks: str = Field(
        "",
        description="Networks (CIDR, separated by commas) that webhooks may deliver to although they are private.",
    )
    webhook_log_retention: Annotated[float, Field(ge=3600)] = Field(
        86_400.0 * 30, description="Age past which finished deliveries are dropped."
    )
    audit_retention: Annotated[float, Field(ge=86_400)] = Field(
        86_400.0 * 400, description="Age past which entries of the audit log are dropped."
    )
    query_timeout: Annotated[float, Field(gt=0, le=600)] = Field(30.0, description="Time that one query may take.")
    query_max_samples: Annotated[int, Field(ge=1000)] = Field(50_000_000, description="Samples that one query may touch.")

    oidc_issuer: str = Field(
        "", description="URL of the OpenID provider that people may sign in through, as the provider spells it; empty for none."
    )
    oidc_client_id: str = Field("", validate_default=True, description="The platform's client id at the OpenID provider.")
    oidc_client_secret: SecretStr = Field(SecretStr(""), description="The platform's secret there; empty for a public client.")
    oidc_scopes: str = Field("openid profile email", description="Scopes that are asked for, openid among them.")
    oidc_role_claim: str = Field(
        "groups", description="Claim whose values IRCA_OIDC_ROLES names; dots lead into objects, such as realm_access.roles."
    )
    oidc_roles: dict[str, GrantedRole] = Field(
        {},
        description="JSON: what each value of the claim grants, such as "
        '{"sre": {"role": "operator", "environments": ["prod-*"]}, "platform": {"role": "admin"}}.',
    )
    oidc_default_role: Literal["", "viewer", "operator", "admin"] = Field(
        "", description="Role, in every environment, of users to whom IRCA_OIDC_ROLES grants nothing; empty refuses them."
    )
    oidc_name: str = Field("", max_length=60, description="The provider's name on the sign-in page; empty means its host name.")
    oidc_session_lifetime: Annotated[float, Field(ge=300, le=604_800)] = Field(
        43_200.0, description="Life of the browser session of a user of the provider."
    )

    @field_validator("trusted_proxies", "webhook_allowed_networks")
    @classmethod
    def _networks(cls, text: str) -> str:
        for word in text.replace(",", " ").split():
            ipaddress.ip_network(word, strict=False)
        return text

    @field_validator("oidc_issuer")
    @classmethod
    def _issuer(cls, text: str) -> str:
        if not text:
            return text
        parts = urllib.parse.urlsplit(text)
        if not parts.hostname or parts.query or parts.fragment or parts.username:
            raise ValueError("must be a URL such as https://login.example.com/realms/staff")
        if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(parts.hostname)):
            raise ValueError("must begin with https://: what the provider says of people must not be forged on the way")
        return text

    @field_validator("oidc_client_id")
    @classmethod
    def _client_id(cls, text: str, info: ValidationInfo) -> str:
        if info.data.get("oidc_issuer") and not text:
            raise ValueError("is needed beside IRCA_OIDC_ISSUER")
        return text

    @field_validator("oidc_scopes")
    @classmethod
    def _scopes(cls, text: str) -> str:
        if "openid" not in text.split():
            raise ValueError("must name the scope openid")
        return text

    def trusted_proxy_networks(self) -> list[str]:
        """The networks of the proxies that are believed, each as CIDR."""
        return [str(ipaddress.ip_network(word, strict=False)) for word in self.trusted_proxies.replace(",", " ").split()]

    def resolved_public_url(self, port: int | None = None) -> str:
        """The URL that printed commands carry; ``port`` is the one in use when the setting is 0."""
        if self.public_url:
            return self.public_url.rstrip("/")
        scheme = "https" if self.tls_certificate else "http"
        return f"{scheme}://localhost:{port or self.port}"

    def resolved_database_url(self) -> str:
        """The SQLAlchemy URL of the state database, with an asynchronous driver."""
        url = self.database_url
        if not url:
            return f"sqlite+aiosqlite:///{(self.data_dir / 'state.db').absolute()}"
        for plain in ("postgresql://", "postgres://"):
            if url.startswith(plain):
                return "postgresql+psycopg://" + url.removeprefix(plain)
        return url


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
