"""The version of zaplock, for those who write it into a file."""

__version__ = "0.1.0"
