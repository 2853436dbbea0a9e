"""The few kinds of Kubernetes objects that graceful touches, and where they live; no discovery. Runs on the client."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """Where objects of a kind live: `apis/ray.io/v1`, `rayjobs`."""

    api: str
    plural: str
    namespaced: bool = True

    @property
    def resource(self) -> str:
        """Return the name in access rules: `rayjobs.ray.io`, `pods`."""
        group = self.api.rpartition("/")[0]
        return f"{self.plural}.{group}" if group else self.plural


KINDS = {
    "RayJob": Kind("ray.io/v1", "rayjobs"),
    "RayCluster": Kind("ray.io/v1", "rayclusters"),
    "Pod": Kind("v1", "pods"),
    "Event": Kind("v1", "events"),
    "ConfigMap": Kind("v1", "configmaps"),
    "Secret": Kind("v1", "secrets"),
    "Service": Kind("v1", "services"),
    "PersistentVolumeClaim": Kind("v1", "persistentvolumeclaims"),
    "ServiceAccount": Kind("v1", "serviceaccounts"),
    "ResourceQuota": Kind("v1", "resourcequotas"),
    "LimitRange": Kind("v1", "limitranges"),
    "Namespace": Kind("v1", "namespaces", False),
    "Node": Kind("v1", "nodes", False),
    "Job": Kind("batch/v1", "jobs"),
    "CronJob": Kind("batch/v1", "cronjobs"),
    "Deployment": Kind("apps/v1", "deployments", False),  # of all namespaces: the operator's is not known
    "NetworkPolicy": Kind("networking.k8s.io/v1", "networkpolicies"),
    "Role": Kind("rbac.authorization.k8s.io/v1", "roles"),
    "RoleBinding": Kind("rbac.authorization.k8s.io/v1", "rolebindings"),
    "Lease": Kind("coordination.k8s.io/v1", "leases"),
    "CustomResourceDefinition": Kind("apiextensions.k8s.io/v1", "customresourcedefinitions", False),
    "SelfSubjectAccessReview": Kind("authorization.k8s.io/v1", "selfsubjectaccessreviews", False),
    "Workload": Kind("kueue.x-k8s.io/v1beta2", "workloads"),
    "PriorityClass": Kind("scheduling.k8s.io/v1", "priorityclasses", False),
    "StorageClass": Kind("storage.k8s.io/v1", "storageclasses", False),
    "QueueVisibility": Kind("visibility.kueue.x-k8s.io/v1beta2", "localqueues"),
    "WorkloadPriorityClass": Kind("kueue.x-k8s.io/v1beta2", "workloadpriorityclasses", False),
    "LocalQueue": Kind("kueue.x-k8s.io/v1beta2", "localqueues"),
}
