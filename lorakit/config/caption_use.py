"""Recipe section `caption_use`: the caption that an image is trained with each time, and its tags."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lorakit.config.fields import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    RecipeSection,
    StrippedStr,
)

FORMS = ("tags", "sentences")
SOURCES = ("file", "metadata", "folder", "template", "model")


class CaptionWeights(RecipeSection):
    """Shares of the captions of an image, by their form or by their source; those left out are not used."""

    tags: NonNegativeFloat | None = None
    """Share of the captions that are lists of tags."""
    sentences: NonNegativeFloat | None = None
    """Share of all other captions."""
    file: NonNegativeFloat | None = None
    """Share of captions from files beside the images."""
    metadata: NonNegativeFloat | None = None
    """Share of captions from metadata files and tables."""
    folder: NonNegativeFloat | None = None
    """Share of captions from folder names."""
    template: NonNegativeFloat | None = None
    """Share of captions from a template."""
    model: NonNegativeFloat | None = None
    """Share of captions that a captioning model wrote."""

    @property
    def by_form(self) -> bool:
        """True if the weights are for forms, False if they are for sources."""
        return any(getattr(self, name) is not None for name in FORMS)

    def shares(self) -> dict[str, float]:
        """Return the weights that are set, by name."""
        return {name: value for name in (*FORMS, *SOURCES) if (value := getattr(self, name)) is not None}

    @model_validator(mode="after")
    def _agree(self) -> CaptionWeights:
        names = self.shares().keys()
        if names & set(FORMS) and names & set(SOURCES):
            raise ValueError(
                f"caption_use.weights are for forms ({', '.join(FORMS)}) or for sources"
                f" ({', '.join(SOURCES)}), not for both"
            )
        if not any(self.shares().values()):
            raise ValueError("caption_use.weights needs a number above 0, such as {sentences: 7, tags: 3}")
        return self


class CaptionUse(RecipeSection):
    """Use of captions in training. Validation takes the caption that is used most, as it is written."""

    shuffle_tags: Annotated[bool, Field(strict=True)] = False
    """Put the tags of a caption in a new order each time that its image is trained."""
    tag_dropout: Fraction = 0.0
    """Probability that a tag is left out of a use; tags with the trigger word stay, and at least one tag."""
    keep_first: NonNegativeInt = 0
    """Number of tags at the beginning that stay in place and are never left out."""
    keep_marker: StrippedStr | None = None
    """Text in captions, such as `|||`: tags before it, and after a second one, stay in place and are never
    left out. It is removed from the caption; `keep_first` is for captions without it."""
    tag_separator: StrippedStr = ","
    """Text between tags."""
    group_separator: StrippedStr | None = None
    """Text that joins several tags into one, such as `;;;`, which are moved and left out together; it becomes
    `tag_separator`."""
    tag_captions: Literal["auto", "all"] = "auto"
    """Captions that are lists of tags: `auto` recognizes short parts between separators and no sentence,
    `all` takes every caption for one."""
    versions: PositiveInt | None = None
    """Number of versions of a caption, each with an order and left-out tags of its own, of which every use
    takes one; null makes a new one for each use. Fewer versions need a smaller cache."""
    weights: CaptionWeights | Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)] | None = None
    """Shares of several captions of an image in its uses: by form such as
    `{sentences: 7, tags: 3}`, by source such as `{model: 7, file: 3}`, or of the first, second, ... caption
    such as `[7, 3]`; null uses all alike."""
    caption_dropout: Fraction = 0.0
    """Probability that an image is trained with the empty caption."""

    @property
    def varies_tags(self) -> bool:
        """True if uses of a caption of tags differ."""
        return self.shuffle_tags or self.tag_dropout > 0

    @model_validator(mode="after")
    def _agree(self) -> CaptionUse:
        if isinstance(self.weights, tuple) and not any(self.weights):
            raise ValueError("caption_use.weights needs a number above 0, such as [7, 3]")
        if not self.varies_tags:
            for key in ("keep_first", "versions"):
                if getattr(self, key):
                    raise ValueError(
                        f"caption_use.{key} is for tags that change: set caption_use.shuffle_tags=true or"
                        " caption_use.tag_dropout"
                    )
        for key in ("keep_marker", "group_separator"):
            if getattr(self, key) == self.tag_separator:
                raise ValueError(f"caption_use.{key} must differ from caption_use.tag_separator")
        if self.keep_marker is not None and self.keep_marker == self.group_separator:
            raise ValueError("caption_use.keep_marker must differ from caption_use.group_separator")
        return self

    def for_class_images(self) -> CaptionUse:
        """Return the use of captions of class images: tags as here, all captions alike, none left out."""
        return self.model_copy(update={"weights": None, "caption_dropout": 0.0})
