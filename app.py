"""Bancada: the workbench. Start it with ``streamlit run app.py``."""

from lib.ui.fast import speed_up_reruns
from lib.ui.shell import open_house

speed_up_reruns()
open_house()
