"""Kubernetes with the KubeRay operator as a backend: a RayJob for each job. Runs on the client."""
