"""Know that it worked: pictures of base and checkpoints scored, with intervals, alarms and a pick.

The way through: `draw` makes pictures, `measure` turns them into an `Evaluation` (`table`), `judge` finds
alarms and the checkpoint to take, `page` shows it. Everything after `measure` works from scores.json alone.
"""
