"""Where submitted runs are: a profile, or a namespace of a kube context. Runs on the client."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from graceful import homes
from graceful.cli import output as out
from graceful.errors import SpecError
from graceful.launch import names
from graceful.launch.backend import Handle, Runs

if TYPE_CHECKING:
    from graceful.launch.base import Profile
    from graceful.launch.kubernetes.kube import Kube


@dataclass(frozen=True, kw_only=True)
class RunLocation:
    """Where the runs are.

    Attributes:
        on: Profile (`cluster/NAME.yaml`); None: the kube context's own namespace.
        context: The context of the kubeconfig; wins over the profile's.
        namespace: Wins over the profile's.
    """

    on: str | None = None
    context: str | None = None
    namespace: str | None = None

    @cached_property
    def runs(self) -> Runs:
        """Return the backend to ask; nothing is sent yet.

        Raises:
            SpecError: No such profile or context, or --context and --namespace where there is not a Kubernetes backend.
        """
        from graceful.launch.kuberay import backend as kuberay

        profile = self._beside_kubernetes
        if profile is None and self._profile is not None and self._profile.kubernetes is not None:
            there = {"namespace": self.namespace} if self.namespace else {}
            cluster = self._profile.kubernetes.model_copy(update=there)
            return kuberay.KubeRayBackend(profile=cluster, connect=lambda: self.kube, warn=out.warn)
        if profile is None:
            return kuberay.KubeRayRuns(connect=lambda: self.kube, warn=out.warn)
        self._require_no_kubernetes(profile.kind)
        return profile.build(home=homes.folder(None), warn=out.warn)

    @property
    def is_home(self) -> bool:
        """Return whether this machine's home is meant: nothing is named, or a profile whose jobs run here.

        Raises:
            SpecError: No such profile, or --context and --namespace where there is not a Kubernetes backend.
        """
        if self.on is None:
            return not self.context and not self.namespace
        if self._profile is None or not self._profile.is_here:
            return False
        self._require_no_kubernetes(self._profile.kind)
        return True

    def _require_no_kubernetes(self, kind: str) -> None:
        if self.context or self.namespace:
            raise SpecError(
                f"--on {self.on}: kind {kind} is not a Kubernetes backend; leave --context and --namespace out"
            )

    @cached_property
    def kube(self) -> Kube:
        """Return the client of the API server; nothing is sent yet.

        Raises:
            SpecError: No such profile or context, or the profile is not a Kubernetes backend.
        """
        from graceful.launch.kubernetes.kube import Kube

        profile = self._profile
        if profile is None:
            return Kube.connect(context=self.context, namespace=self.namespace)
        cluster = profile.kubernetes
        if cluster is None:
            raise SpecError(
                f"--on {self.on}: kind {profile.kind} is not a Kubernetes backend; name a profile of kind kuberay"
            )
        return Kube.connect(context=self.context or cluster.context, namespace=self.namespace or cluster.namespace)

    @property
    def storage(self) -> str | None:
        """Return the profile's bucket for runs, s3://bucket/prefix; None: there is no profile or no bucket.

        Raises:
            SpecError: No such profile.
        """
        return None if self._profile is None else self._profile.bucket

    def handle(self, run: str) -> Handle:
        """Return the handle for what people type: a run id, a job's name, or a handle, which the backend checks."""
        if "://" in run:
            return Handle.parse(run)
        name = names.job_name(run)
        if self._beside_kubernetes is None:
            from graceful.launch.kuberay.backend import SCHEME

            return Handle(scheme=SCHEME, location=self.kube.namespace, name=name)
        return self._beside_kubernetes.handle(name)

    def title(self) -> str:
        """Return the location for people: `namespace team-a`, or the profile."""
        return f"namespace {self.kube.namespace}" if self._beside_kubernetes is None else f"--on {self.on}"

    def context_note(self) -> str:
        """Return the kube context for people; empty where there is not a Kubernetes backend."""
        return f" (context {self.kube.access.context})" if self._beside_kubernetes is None else ""

    @property
    def _beside_kubernetes(self) -> Profile | None:
        """Return the profile if its jobs are not objects of Kubernetes; None: they are, with a profile or without."""
        profile = self._profile
        return None if profile is None or profile.kubernetes is not None else profile

    @cached_property
    def _profile(self) -> Profile | None:
        if self.on is None:
            return None
        from graceful.launch import profile

        return profile.load(self.on)

    def options(self) -> str:
        """Return the options as people type them, for messages."""
        options = {"--on": self.on, "--context": self.context, "-n": self.namespace}
        return "".join(f" {flag} {value}" for flag, value in options.items() if value)
