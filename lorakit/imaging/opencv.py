"""OpenCV, which finds edges and faces: loaded when it is needed, with one error if it cannot be."""

from __future__ import annotations

from typing import Any

from lorakit.core.errors import ConfigError, first_line

INSTALL = "pip install 'opencv-python-headless<5'"


def load_opencv(where: str) -> Any:
    """Return the module cv2; ConfigError if it is missing or broken. `where` names what needs it."""
    try:
        import cv2
    except ImportError as error:  # also if a library of the system is missing
        message = f"OpenCV cannot be loaded: {first_line(error)}"
        raise ConfigError(message, where=where, remedy=INSTALL) from error
    return cv2
