"""The version, for headers and for the package's metadata."""

__version__ = "0.1.0"
