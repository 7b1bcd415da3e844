"""The version of lorakit."""

__version__ = "0.2.0"
