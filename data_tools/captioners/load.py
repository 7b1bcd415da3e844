"""Load a captioner: a server when an address is given, else a model by what its folder says."""

from __future__ import annotations

from data_tools.captioners.captioner import Captioner, ModelFolder
from data_tools.captioners.options import CaptionerOptions
from lorakit.core.errors import ConfigError


def load_captioner(options: CaptionerOptions) -> Captioner:
    """The captioner, ready to be asked; loads torch only when a model runs here."""
    options.check()
    if options.server:
        from data_tools.captioners.server import OpenAICaptioner

        return OpenAICaptioner(options)
    model = ModelFolder.find(str(options.model))
    config = model.config()
    if "model_type" in config:
        from data_tools.captioners.vlm import VisionLanguageCaptioner

        return VisionLanguageCaptioner(model, options)
    if "architecture" in config:
        from data_tools.captioners.tagger import Tagger

        return Tagger(model, options)
    raise ConfigError(
        "config.json names neither a transformers model (model_type) nor a timm one (architecture)",
        where=str(model.folder),
        remedy="use an image-and-text-to-text model or a WD tagger",
    )
