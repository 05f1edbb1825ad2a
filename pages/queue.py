"""What this machine is doing: the run that is on, and those that wait."""

from lib.ui.queue import show

show()
