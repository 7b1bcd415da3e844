"""Captions by a model: one interface, and what can stand behind it.

transformers    any image-and-text-to-text model of the library (vlm.py)
server          anything that speaks OpenAI's chat protocol (server.py)
tagger          WD taggers and other timm models with a list of tags (tagger.py)
"""

from data_tools.captioners.captioner import (
    Captioner,
    CaptionFailure,
    CaptionRequest,
    CaptionResponse,
    ModelFolder,
)
from data_tools.captioners.load import load_captioner
from data_tools.captioners.options import CaptionerOptions

__all__ = [
    "CaptionFailure",
    "CaptionRequest",
    "CaptionResponse",
    "Captioner",
    "CaptionerOptions",
    "ModelFolder",
    "load_captioner",
]
