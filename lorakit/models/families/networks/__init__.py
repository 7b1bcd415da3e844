"""Networks that families put together; their modules load torch, and are imported when a model is touched."""
