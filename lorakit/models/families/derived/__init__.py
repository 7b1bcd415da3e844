"""Families for all other text-to-image pipelines, derived from the pipeline's own call.

`predict` runs the published call itself, one image at a time, with recorded text embeddings and up to its
scheduler: packing, timesteps and signs are the pipeline's by construction. The assumptions of this (text
embeddings that do not depend on the size, guidance that can be switched off, a known decoding) are checked
before any work, and a pipeline that fails a check is refused with the reason.
"""
