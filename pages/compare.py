"""Lab 6: compare. One harness for every engine, an honest race, and vLLM: which one, for whom?"""

from labs.compare.checks import LAB
from lib.ui.lab import show

show(LAB)
