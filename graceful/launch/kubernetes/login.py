"""Credentials for an API server, from the user and cluster sections of a kubeconfig. Runs on the client.

Certificates, tokens and passwords are read here: a quarter of the start-up time of the official client, which runs the
plugins of clouds and renews OIDC tokens. It is imported in this module only.
"""

from __future__ import annotations

import base64
import os
import re
import ssl
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

from graceful import redact
from graceful.errors import SpecError, one_line

Section = Mapping[str, Any]
Token = Callable[[], str]
Headers = tuple[tuple[str, str], ...]
_KINDS = {dict: "a mapping", list: "a list", str: "text", type(None): "nothing", bool: "true or false"}
_RENEW = timedelta(seconds=10)
"""A plugin is asked again so long before its token expires."""
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")
_HEADER_NAME = "!#$&'*+-.^_`|~"
"""Characters that the name of a header may hold besides letters and digits."""


@dataclass(frozen=True, kw_only=True)
class Login:
    """The credentials that a request carries.

    Attributes:
        token: Called for each request, because tokens rotate; None: the certificate or a header says it.
        headers: Name and value; a name may come more than once.
        certificate: Certificate and key as texts; None: there is none.
    """

    token: Token | None = field(default=None, repr=False)
    headers: Headers = field(default=(), repr=False)
    certificate: tuple[str, str | None] | None = field(default=None, repr=False)


def text(section: Section, key: str, *, where: str) -> str:
    """Return a text of a section; empty if there is none. Numbers are taken as they are written, as kubectl does.

    Raises:
        SpecError: It is a list or a mapping.
    """
    value = section.get(key)
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or isinstance(value, str | int | float):
        return "" if value is None else str(value)
    raise SpecError(f"{where}: {key} must be text, got {kind(value)}; correct the kubeconfig")


def kind(value: object) -> str:
    """Return what a value is, for messages."""
    return _KINDS.get(type(value), "a number")


def login(user: Section, cluster: Section, *, where: str, files: Sequence[Path], context: str) -> Login:
    """Return the identity of a user section: a token, a password, a certificate, a plugin, and whom it impersonates.

    Args:
        user: The user of the kubeconfig, with absolute paths.
        cluster: The cluster's, which some plugins want to know.
        where: Names the context in messages.
        files: The kubeconfig, where the official client renews a token.
        context: Its name there.

    Raises:
        SpecError: One line: what cannot be used.
    """
    headers = _impersonation(user, where)
    certificate = pem(user, "client-certificate", where=where)
    key = pem(user, "client-key", where=where)
    pair = None if certificate is None else (certificate, key)
    token, basic = _token(user, where), _basic(user, where)
    if token is not None and basic:
        raise SpecError(f"{where}: its user has a token and a user name; keep one of them in the kubeconfig")
    if token is None and not basic and user.get("exec") is not None:
        plugin = _Plugin.of(user["exec"], cluster, where=where)
        pair = plugin.certificate() or pair
        token = plugin.token if plugin.credential.get("token") else None
    elif token is None and not basic and user.get("auth-provider") is not None:
        token = _provider_token(files, context, where)
    return Login(token=token, headers=(*basic, *headers), certificate=pair)


def tls(cluster: Section, certificate: tuple[str, str | None] | None, *, where: str) -> ssl.SSLContext:
    """Return how a server is recognised, and with which certificate we are.

    Raises:
        SpecError: A certificate or key cannot be used.
    """
    authority = pem(cluster, "certificate-authority", where=where)
    try:
        context = ssl.create_default_context(cadata=authority)
    except (ssl.SSLError, ValueError) as e:
        key = "certificate-authority-data" if cluster.get("certificate-authority-data") else "certificate-authority"
        raise SpecError(f"{where}: {key}: no certificate ({one_line(e)}); renew the kubeconfig") from e
    insecure = cluster.get("insecure-skip-tls-verify") or False
    if not isinstance(insecure, bool):
        raise SpecError(f"{where}: insecure-skip-tls-verify must be true or false, got {insecure!r}; leave out quotes")
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if certificate is not None:
        _present(context, certificate, where)
    return context


def pem(section: Section, key: str, *, where: str) -> str | None:
    """Return a certificate or key, embedded or from a file, as text; None: the section has none.

    Raises:
        SpecError: It is not base64, or the file cannot be read.
    """
    embedded, path = text(section, f"{key}-data", where=where), text(section, key, where=where)
    if embedded:
        try:
            return base64.b64decode("".join(embedded.split()), validate=True).decode()
        except ValueError as e:
            raise SpecError(f"{where}: {key}-data: not base64 of text; renew the kubeconfig") from e
    return content(Path(path), f"{where}: {key}") if path else None


def content(path: Path, what: str) -> str:
    """Return the text of a file that must hold something.

    Raises:
        SpecError: It cannot be read, or is empty.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as e:
        reason = (e.strerror if isinstance(e, OSError) else None) or one_line(e)
        raise SpecError(f"{what} {path}: cannot be read ({reason}); renew the kubeconfig") from e
    if not text:
        raise SpecError(f"{what} {path}: is empty; renew the kubeconfig")
    return text


def token_file(path: Path) -> Token:
    """Return a function that reads the token in a file; it raises a SpecError of one line."""
    return lambda: _printable_token(content(path, "token file"), f"token file {path}")


def _present(context: ssl.SSLContext, certificate: tuple[str, str | None], where: str) -> None:
    """Load our certificate; the ssl module reads certificates from files only."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, "client.crt"), Path(folder, "client.key")]
        for path, part in zip(paths, certificate, strict=True):
            path.touch(mode=0o600)
            path.write_text(part or "", encoding="utf-8")
        key = None if certificate[1] is None else paths[1]
        try:
            context.load_cert_chain(
                paths[0], key, password=lambda: b""
            )  # without a password, OpenSSL asks on the terminal
        except (ssl.SSLError, ValueError) as e:
            reason = one_line(e)
            raise SpecError(f"{where}: its certificate cannot be used ({reason}); renew the kubeconfig") from e


def _token(user: Section, where: str) -> Token | None:
    if path := text(user, "tokenFile", where=where):
        return token_file(Path(path))
    if value := text(user, "token", where=where):
        token = _printable_token(value, f"{where}: token")
        return lambda: token
    return None


def _printable_token(value: str, what: str) -> str:
    token = value.strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise SpecError(f"{what}: holds white space or control characters in its middle; renew the kubeconfig")
    return token


def _basic(user: Section, where: str) -> Headers:
    name, password = text(user, "username", where=where), text(user, "password", where=where)
    if not name and not password:
        return ()
    if ":" in name:
        raise SpecError(f"{where}: username: must not hold a colon; correct the kubeconfig")
    redact.remember(password)
    return (("Authorization", f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"),)


def _impersonation(user: Section, where: str) -> Headers:
    """Return the headers for `as`, `as-uid`, `as-groups` and `as-user-extra`."""
    name = text(user, "as", where=where)
    for key in ("as-uid", "as-groups", "as-user-extra"):
        if user.get(key) and not name:
            raise SpecError(f"{where}: {key} without as; name the user to impersonate in the kubeconfig")
    extra = user.get("as-user-extra") or {}
    if not isinstance(extra, Mapping):
        raise SpecError(f"{where}: as-user-extra must be a mapping, got {kind(extra)}; correct the kubeconfig")
    lines = [("as", "User", name), ("as-uid", "Uid", text(user, "as-uid", where=where))]
    lines += [("as-groups", "Group", group) for group in _texts(user, "as-groups", where, "as-groups")]
    for key in extra:
        title, name = f"as-user-extra.{key}", f"Extra-{quote(key, safe=_HEADER_NAME)}"
        lines += [(title, name, value) for value in _texts(extra, key, where, title)]
    for title, _, value in lines:
        if _UNPRINTABLE.search(value):
            raise SpecError(f"{where}: {title}: holds control characters; correct the kubeconfig")
    # bytes of UTF-8, which http.client writes as they are
    return tuple((f"Impersonate-{end}", value.encode().decode("latin-1")) for _, end, value in lines if value)


def _texts(section: Section, key: str, where: str, title: str) -> list[str]:
    values = section.get(key) or []
    if not isinstance(values, list) or any(isinstance(value, list | dict) for value in values):
        raise SpecError(f"{where}: {title} must be a list of texts; correct the kubeconfig")
    return [text({title: value}, title, where=where) for value in values]


@dataclass(kw_only=True)
class _Plugin:
    """A login program of a cloud; it runs again when its credential expires."""

    provider: Any
    where: str
    credential: Mapping[str, Any] = field(default_factory=dict)
    expires: datetime | None = None

    @classmethod
    def of(cls, section: Any, cluster: Section, *, where: str) -> _Plugin:
        """Ask the program that the section names."""
        if not isinstance(section, Mapping):
            raise SpecError(f"{where}: exec must be a mapping, got {kind(section)}; correct the kubeconfig")
        if not text(section, "command", where=where):
            raise SpecError(f"{where}: exec has no command; correct the kubeconfig")
        from kubernetes.config.exec_provider import ExecProvider
        from kubernetes.config.kube_config import ConfigNode

        def provider() -> Any:
            return ExecProvider(  # type: ignore[no-untyped-call]
                ConfigNode("exec", dict(section)),  # type: ignore[no-untyped-call]
                None,
                ConfigNode("cluster", dict(cluster)),  # type: ignore[no-untyped-call]
            )

        plugin = cls(provider=provider, where=where)
        plugin.ask(hint=text(section, "installHint", where=where))
        return plugin

    def ask(self, hint: str = "") -> None:
        """Run the program and keep what it tells."""
        from kubernetes.config import ConfigException

        try:
            credential = self.provider().run()
            expires = credential.get("expirationTimestamp")
            self.expires = None if expires is None else datetime.fromisoformat(expires).astimezone(UTC)
            if not credential.get("token") and not credential.get("clientCertificateData"):
                raise ValueError("the program told neither a token nor a certificate")
            self.credential = credential
        except (ConfigException, OSError, ValueError, TypeError, KeyError, AttributeError) as e:
            reason = (e.strerror if isinstance(e, OSError) else None) or one_line(e)
            remedy = one_line(hint) or "log in again, then repeat the command"
            raise SpecError(f"{self.where}: its login failed ({redact.message(reason)[:300]}); {remedy}") from e

    def token(self) -> str:
        """Return the token, renewed if it is about to expire."""
        if self.expires is not None and datetime.now(UTC) >= self.expires - _RENEW:
            self.ask()
        return _printable_token(str(self.credential.get("token") or ""), f"{self.where}: token of its plugin")

    def certificate(self) -> tuple[str, str | None] | None:
        """Return the certificate and key of the credential, if it has one."""
        certificate = self.credential.get("clientCertificateData")
        return None if not certificate else (str(certificate), str(self.credential.get("clientKeyData") or ""))


def _provider_token(files: Sequence[Path], context: str, where: str) -> Token:
    """Return the token of an auth provider (OIDC), which the official client renews and writes back."""
    from kubernetes import config
    from kubernetes.client import Configuration

    joined = os.pathsep.join(map(str, files))
    loaded = Configuration()
    try:
        config.load_kube_config(  # type: ignore[no-untyped-call]
            config_file=joined, context=context, client_configuration=loaded
        )
    except Exception as e:  # providers fail in every way a program can
        raise SpecError(f"{where}: its login failed ({redact.message(one_line(e))[:300]}); log in again") from e
    if not loaded.api_key:  # the client logs why a provider failed, and goes on without an identity
        raise SpecError(f"{where}: its login failed; log in again, then repeat the command")

    def token() -> str:
        api_key: str = loaded.get_api_key_with_prefix("BearerToken", "authorization") or ""  # renewed when due
        return _printable_token(api_key.removeprefix("Bearer "), f"{where}: token of its provider")

    return token
