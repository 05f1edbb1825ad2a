"""Lab 3: is it still the same model in another form, and what does that form cost?"""

from labs.convert.checks import LAB
from lib.ui.lab import show

show(LAB)
