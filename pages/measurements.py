"""Every run card of the learner: find, read, compare, draw, take along, delete."""

from lib.ui.measurements import show

show()
