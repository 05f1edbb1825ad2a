"""Lab 5: Foundry Local, the SDK that ships a model inside your app. What does it cost, and what does it keep?"""

from labs.foundry.checks import LAB
from lib.ui.lab import show

show(LAB)
