"""The evaluations of this code location, each in a folder of its own with a `defs.yaml`."""
