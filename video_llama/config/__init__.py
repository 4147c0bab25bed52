"""From a YAML to typed settings, and from settings to model, data and runner."""
