"""Evaluation of adapters: images of the base model and of checkpoints, scored with intervals and alarms.

The order of work: `checkpoints` samples the images, `measure` scores them into an `Evaluation`
(`score_table`), `alarms` finds faults, `select` selects a checkpoint, and `report` writes the result.
Everything after `measure` needs only scores.json.
"""
