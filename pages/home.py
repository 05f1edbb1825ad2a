"""The first screen."""

from lib.ui.home import show

show()
