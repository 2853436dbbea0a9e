"""Versions and where they came from, recorded in MLflow: the only room that knows it. Driver and client.

Importing this costs no mlflow; the first question to a `Store` does.
"""

from graceful.lineage.listing import Listed
from graceful.lineage.registration import Registration
from graceful.lineage.render import lineage_table
from graceful.lineage.schema import Edge, LineageRecord, Node
from graceful.lineage.store import Store

__all__ = ["Edge", "LineageRecord", "Listed", "Node", "Registration", "Store", "lineage_table"]
