"""The planner: memory and time of a run, predicted without weights, and the settings that fit a card."""
