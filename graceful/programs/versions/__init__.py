"""Programs about registered versions: roles, lineage, differences, combinations, explanations. Runs in the driver."""
