"""An evaluation declared in YAML."""
