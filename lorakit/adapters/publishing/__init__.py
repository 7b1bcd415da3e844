"""Model cards beside exports, the folder of a published run, and its upload to the model hub."""
