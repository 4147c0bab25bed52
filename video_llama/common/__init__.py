"""Helpers of every room: the registry, files, range checks, stand-ins for native libraries."""
