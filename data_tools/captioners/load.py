"""Load a captioner: a server if an address is given, else the kind of model that config.json names."""

from __future__ import annotations

from data_tools.captioners.captioner import Captioner, ModelFolder
from data_tools.captioners.options import CaptionerOptions
from lorakit.core.errors import ConfigError


def load_captioner(options: CaptionerOptions) -> Captioner:
    """Return the captioner; torch is loaded only for a model that runs here."""
    options.check()
    if options.server:
        from data_tools.captioners.server import OpenAICaptioner

        return OpenAICaptioner(options)
    model = ModelFolder.resolve(str(options.model))
    config = model.read_config()
    if "model_type" in config:
        from data_tools.captioners.vision_language import VisionLanguageCaptioner

        return VisionLanguageCaptioner(model, options)
    if "architecture" in config:
        from data_tools.captioners.tagger import Tagger

        return Tagger(model, options)
    raise ConfigError(
        "config.json names neither a transformers model (model_type) nor a timm one (architecture)",
        where=str(model.folder),
        remedy="use an image-and-text-to-text model or a WD tagger",
    )
