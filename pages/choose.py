"""Lab 1: which model fits this machine and this task?"""

from labs.choose.checks import LAB
from lib.ui.lab import show

show(LAB)
