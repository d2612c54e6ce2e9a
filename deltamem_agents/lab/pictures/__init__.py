"""Pictures of a state and of a training run. `pictures.recall` draws reports. Needs matplotlib (imported on use)."""

from deltamem_agents.lab.pictures.canvas import import_matplotlib
from deltamem_agents.lab.pictures.state import SHOWN_SHARE, state_picture
from deltamem_agents.lab.pictures.training import training_picture

__all__ = ["SHOWN_SHARE", "import_matplotlib", "state_picture", "training_picture"]
