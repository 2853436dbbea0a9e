"""Client of a Kubernetes API server: typed REST calls, errors by what the caller can do. Runs on the client.

Plain REST, because a command that prints one status must not pay half a second for the import of generated models or
for discovery: the few kinds we touch are in `KINDS`. Reads, deletes and server-side applies are repeated on 429, 5xx
and lost connections; a create is not once it may have arrived (its caller reads and decides).
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

from graceful.launch.backend import Document
from graceful.launch.kubernetes.kinds import KINDS
from graceful.launch.kubernetes.kubeconfig import Access, load
from graceful.launch.kubernetes.wire import READ_SECONDS, Wire
from graceful.launch.refusals import GoneError, InvalidObjectError, NotFoundError, Request, UnreachableError, refused
from graceful.patience import Patience

MANAGER = "graceful"
PAGE = 500
FOLLOW_SILENCE = 60.0
"""Seconds without a line after which a followed log is opened again: its connection may have died without a word."""
LATE = 15.0
"""Seconds after the end of a watch's own time at which a silent connection counts as lost."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A collection at one moment; a watch goes on from its resource version."""

    items: tuple[Document, ...]
    resource_version: str


@dataclass(frozen=True, kw_only=True)
class WatchEvent:
    """ADDED, MODIFIED, DELETED or BOOKMARK, and the object; of a bookmark only metadata.resourceVersion counts."""

    type: str
    object: Document


@dataclass(kw_only=True)
class Kube:
    """One API server, one identity, one default namespace. Thread-safe as urllib3's pools are.

    Attributes:
        access: How it is reached.
        namespace: Used where a call names none; "": that of the context.
        patience: Between repeated requests.
        late: Seconds added to a watch's time before silence counts as a lost connection.
    """

    access: Access
    namespace: str = ""
    patience: Patience = field(default_factory=Patience)
    late: float = LATE

    def __post_init__(self) -> None:
        self.namespace = self.namespace or self.access.namespace
        self._wire = Wire(access=self.access, patience=self.patience)

    @classmethod
    def connect(cls, *, context: str | None = None, namespace: str | None = None) -> Kube:
        """Return a client of a context of the kubeconfig; nothing is sent yet.

        Raises:
            SpecError: As `kubeconfig.load`.
        """
        return cls(access=load(context), namespace=namespace or "")

    def get(self, kind: str, name: str, *, namespace: str | None = None) -> Document:
        """Return one object.

        Raises:
            NotFoundError: It does not exist.
            ApiError: As `refusals` draws them; so does every method.
        """
        return self._call("GET", "get", kind, name, namespace=namespace)

    def list(self, kind: str, *, selector: str = "", fields: str = "", namespace: str | None = None) -> Listing:
        """Return every object that matches, read in pages; a list that expires between two pages is read again.

        Args:
            kind: Key of `KINDS`.
            selector: Labels: `a=b,c`.
            fields: Fields: `involvedObject.uid=...`.
            namespace: None: ours.
        """
        pages = partial(self._pages, kind, {"labelSelector": selector, "fieldSelector": fields}, namespace)
        return self.patience.repeat(pages, failure=GoneError, may_pass=lambda _: True)

    def create(self, document: Document, *, dry_run: bool = False) -> Document:
        """Create; the server refuses unknown fields.

        Raises:
            ConflictError: It exists already.
        """
        query = {"fieldManager": MANAGER, **_flags(dry_run)}
        return self._call(
            "POST",
            "create",
            *_kind_and_name(document, new=True),
            namespace=_namespace_of(document),
            body=document,
            query=query,
        )

    def apply(self, document: Document, *, dry_run: bool = False, force: bool = False) -> Document:
        """Apply a document on the server's side; the same document twice changes nothing and wakes no watch.

        Args:
            document: Complete intent; fields that we applied before and that are missing now are removed.
            dry_run: The server defaults, validates, admits and persists nothing.
            force: Take over fields that another manager owns.

        Raises:
            ConflictError: Another manager owns a field; the message lists them.
        """
        query = {"fieldManager": MANAGER, "force": str(force).lower(), **_flags(dry_run)}
        names = _kind_and_name(document)
        return self._call(
            "PATCH", "patch", *names, namespace=_namespace_of(document), body=document, form="apply", query=query
        )

    def patch(self, kind: str, name: str, body: Document, *, part: str = "", namespace: str | None = None) -> Document:
        """Merge-patch one object, or its subresource `part` (status)."""
        return self._call("PATCH", "patch", kind, name, part=part, namespace=namespace, body=body, form="merge")

    def delete(
        self, kind: str, name: str, *, propagation: str = "Background", uid: str = "", namespace: str | None = None
    ) -> None:
        """Delete one object and, by propagation, what it owns.

        Args:
            kind: Key of `KINDS`.
            name: The name of the object.
            propagation: Background, Foreground or Orphan.
            uid: Delete this very object, not a successor of the same name (ConflictError then).
            namespace: None: ours.
        """
        body: dict[str, Any] = {"propagationPolicy": propagation}
        if uid:
            body["preconditions"] = {"uid": uid}
        self._call("DELETE", "delete", kind, name, namespace=namespace, body=body)

    def watch(
        self,
        kind: str,
        *,
        resource_version: str,
        seconds: float,
        selector: str = "",
        fields: str = "",
        namespace: str | None = None,
    ) -> Generator[WatchEvent, None, None]:
        """Yield changes after a resource version, with bookmarks, for some seconds, over one connection.

        Raises:
            GoneError: The resource version is too old.
            UnreachableError: The connection was cut, or silent for `late` seconds after the watch's own end.
        """
        query = {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": resource_version}
        query |= {"timeoutSeconds": str(max(1, round(seconds))), "labelSelector": selector, "fieldSelector": fields}
        request, url = self._locate("watch", kind, "", namespace=namespace, query=query)
        with closing(self._wire.lines(url, request, silence=seconds + self.late)) as lines:
            for line in lines:
                try:
                    event = json.loads(line)
                except ValueError as e:
                    raise UnreachableError(
                        f"{request}: cut in the middle of an event", {"request": str(request)}
                    ) from e
                if event["type"] == "ERROR":
                    raise refused(request, int(event["object"].get("code") or 500), json.dumps(event["object"]))
                yield WatchEvent(type=event["type"], object=event["object"])

    def pod_logs(
        self,
        pod: str,
        *,
        container: str = "",
        follow: bool = False,
        since: datetime | None = None,
        tail: int | None = None,
        namespace: str | None = None,
    ) -> Generator[str, None, None]:
        """Yield lines of a pod's log, each after its timestamp and one space; without a newline: cut, or the very last.

        Args:
            pod: Name.
            container: Empty: the only one.
            follow: Go on until the container ends.
            since: The server knows whole seconds only: lines of the same second come again.
            tail: Only the last lines.
            namespace: None: ours.

        Raises:
            InvalidObjectError: The container has not started yet.
            UnreachableError: The connection was cut; `facts["silent"]` if it merely said nothing for a minute.
        """
        query = {"container": container, "timestamps": "true"} | ({"follow": "true"} if follow else {})
        if since is not None:
            query["sinceTime"] = since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if tail is not None:
            query["tailLines"] = str(tail)
        request, url = self._locate("get", "Pod", pod, part="log", namespace=namespace, query=query)
        with closing(self._wire.lines(url, request, silence=FOLLOW_SILENCE if follow else READ_SECONDS)) as lines:
            for line in lines:
                yield line.decode("utf-8", errors="replace")

    def can_i(self, verb: str, resource: str, *, namespace: str | None = None) -> bool:
        """Return whether this identity may use a verb on a resource, such as `rayjobs.ray.io` or `pods/log`."""
        plural, _, group = resource.partition(".")
        plural, _, subresource = plural.partition("/")
        attributes = {"verb": verb, "group": group, "resource": plural, "subresource": subresource}
        attributes["namespace"] = namespace or self.namespace
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        return bool(self.create(review).get("status", {}).get("allowed"))

    def waiting_workloads(self, queue: str) -> tuple[Document, ...]:
        """Return what waits in a LocalQueue, first comes first, as Kueue's visibility API tells it."""
        answer = self._call("GET", "get", "QueueVisibility", queue, part="pendingworkloads")
        return tuple(answer.get("items") or ())

    def serves(self, group: str) -> bool:
        """Return whether the server has an API group, such as `kueue.x-k8s.io`."""
        request = Request(verb="get", resource=f"apis/{group}", identity=self.access.identity)
        try:
            self._wire.ask("GET", f"{self.access.server}/apis/{group}", request)
        except NotFoundError:
            return False
        return True

    def version(self) -> str:
        """Return the server's version, e.g. v1.36.3: the cheapest request there is."""
        request = Request(verb="get", resource="version", identity=self.access.identity)
        return str(self._wire.ask("GET", f"{self.access.server}/version", request)["gitVersion"])

    def _pages(self, kind: str, query: Mapping[str, str], namespace: str | None) -> Listing:
        items: list[Document] = []
        token = ""
        while True:
            page = self._call(
                "GET", "list", kind, "", namespace=namespace, query={**query, "limit": str(PAGE), "continue": token}
            )
            items += page.get("items") or ()
            token = page["metadata"].get("continue", "")
            if not token:
                return Listing(items=tuple(items), resource_version=page["metadata"].get("resourceVersion", ""))

    def _call(
        self,
        method: str,
        verb: str,
        kind: str,
        name: str,
        *,
        query: Mapping[str, str] | None = None,
        part: str = "",
        namespace: str | None = None,
        body: Document | None = None,
        form: str = "",
    ) -> Document:
        request, url = self._locate(verb, kind, name, part=part, namespace=namespace, query=query or {})
        return self._wire.ask(method, url, request, body, form)

    def _locate(
        self, verb: str, kind: str, name: str, *, part: str = "", namespace: str | None, query: Mapping[str, str]
    ) -> tuple[Request, str]:
        location = KINDS[kind]
        target_namespace = (namespace or self.namespace) if location.namespaced else ""
        root = f"apis/{location.api}" if "/" in location.api else f"api/{location.api}"
        segments = [root, *(["namespaces", quote(target_namespace)] if target_namespace else []), location.plural]
        segments += [quote(segment) for segment in (name, part) if segment]
        query_string = urlencode({key: value for key, value in query.items() if value})
        resource = (
            location.resource
            if not part
            else location.resource.replace(location.plural, f"{location.plural}/{part}", 1)
        )
        request = Request(
            verb=verb, resource=resource, name=name, namespace=target_namespace, identity=self.access.identity
        )
        return request, f"{self.access.server}/{'/'.join(segments)}{f'?{query_string}' if query_string else ''}"


def _flags(dry_run: bool) -> dict[str, str]:
    return {"fieldValidation": "Strict"} | ({"dryRun": "All"} if dry_run else {})


def _kind_and_name(document: Document, *, new: bool = False) -> tuple[str, str]:
    """Return kind and name for the URL; a new object goes to its collection, which has no name."""
    kind = document.get("kind", "")
    if kind not in KINDS:
        raise InvalidObjectError(
            f"object of kind {kind!r}: not one that graceful sends; known: {', '.join(sorted(KINDS))}"
        )
    return kind, "" if new else str(document["metadata"]["name"])


def _namespace_of(document: Document) -> str | None:
    namespace: str | None = document.get("metadata", {}).get("namespace")
    return namespace
