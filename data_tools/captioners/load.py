"""Load a captioner: a server if an address is given, else the kind of model that config.json names."""

from __future__ import annotations

from data_tools.captioners import unsupported_models
from data_tools.captioners.captioner import Captioner
from data_tools.captioners.model_folder import ModelFolder
from data_tools.captioners.options import CaptionerOptions
from lorakit.core.errors import ConfigError


def load_captioner(options: CaptionerOptions) -> Captioner:
    """Return the captioner; torch is loaded only for a model that runs here."""
    options.check()
    if options.server:
        from data_tools.captioners.server import OpenAICaptioner

        return OpenAICaptioner(options)
    model = ModelFolder.resolve(str(options.model))
    if _is_onnx_tagger(model):
        from data_tools.captioners.onnx_tagger import OnnxTagger

        return OnnxTagger(model, options)
    config = model.read_config()
    if "model_type" in config:
        from data_tools.captioners.vision_language import VisionLanguageCaptioner

        return VisionLanguageCaptioner(model, options)
    if "architecture" in config:
        from data_tools.captioners.tagger import TimmTagger

        return TimmTagger(model, options)
    raise ConfigError(
        "config.json names neither a transformers model (model_type) nor a timm one (architecture)",
        where=str(model.folder),
        remedy=f"give {unsupported_models.SUPPORTED}",
    )


def _is_onnx_tagger(model: ModelFolder) -> bool:
    """Return True for a folder with a tagger in ONNX and no safetensors, which are preferred."""
    names = {path.name for path in model.folder.iterdir()}
    has_safetensors = "config.json" in names and any(name.endswith(".safetensors") for name in names)
    return {"model.onnx", unsupported_models.TAGS_FILE} <= names and not has_safetensors
