"""Captions by a model: one interface with three implementations.

transformers    image-text-to-text models of the library (vision_language.py)
server          servers that speak OpenAI's chat protocol (server.py)
tagger          WD taggers and other timm models with a list of tags (tagger.py, onnx_tagger.py)
"""

from data_tools.captioners.captioner import (
    Captioner,
    CaptionFailure,
    CaptionRequest,
    CaptionResponse,
)
from data_tools.captioners.load import load_captioner
from data_tools.captioners.model_folder import ModelFolder
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
