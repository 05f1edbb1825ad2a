"""Lab 4: a server that fetches, keeps and serves models."""

from labs.ollama.checks import LAB
from lib.ui.lab import show

show(LAB)
