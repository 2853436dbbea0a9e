"""The grammar of addresses of container images, as registries and runtimes read them. Pure functions. Client."""

from __future__ import annotations

import re

_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)"
_DOMAIN = rf"(?:{_HOST}(?:\.{_HOST})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = rf"(?:{_DOMAIN}/)?{_PART}(?:/{_PART})*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST = r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}"
_ADDRESS = re.compile(rf"(?P<name>{_NAME})(?::(?P<tag>{_TAG}))?(?:@(?P<digest>{_DIGEST}))?")


def well_formed(address: str) -> str:
    """Return the address of an image; pods with another text would wait for it forever.

    Raises:
        ValueError: It is none, with the part that is wrong.
    """
    if _ADDRESS.fullmatch(address) is None:
        raise ValueError(f"{_problem(address)}, got {address!r}; write HOST/NAME:TAG or HOST/NAME@sha256:DIGEST")
    return address


def _problem(address: str) -> str:
    if "://" in address:
        return "the address of an image has no scheme"
    rest, at, digest = address.partition("@")
    if at and re.fullmatch(_DIGEST, digest) is None:
        return "the digest of an image is sha256: and 64 hexadecimal digits in lower case"
    name, colon, tag = rest.rpartition(":")
    if colon and "/" not in tag and re.fullmatch(_TAG, tag) is None:
        return "the tag of an image has at most 128 letters, digits, dots, hyphens and underscores"
    path = (name if colon and "/" not in tag else rest).partition("/")[2] or rest
    return "the name of an image is in lower case" if path != path.lower() else "this is not an address of an image"
