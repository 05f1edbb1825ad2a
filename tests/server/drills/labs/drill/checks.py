"""What makes the drill a lab."""

from labs.drill.steps import LAB

__all__ = ["LAB"]
