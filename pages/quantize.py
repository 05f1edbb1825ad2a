"""Lab 2: how small can a model get, and what does it cost?"""

from labs.quantize.checks import LAB
from lib.ui.lab import show

show(LAB)
