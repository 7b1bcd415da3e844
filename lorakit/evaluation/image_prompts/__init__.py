"""Prompts of images of other tools: from their metadata, files beside them, and their names."""
