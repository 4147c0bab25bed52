"""What every part stands on: the registry, files, range checks, stand-ins for native libraries."""
