"""Kubernetes with the KubeRay operator as a place to run: a RayJob for each job. Runs on the client."""
