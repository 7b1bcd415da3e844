"""Dataset tools: from a folder of images to a manifest that a trainer can trust."""
