"""What can be set from outside, read once by an entry point and passed down.

Every setting is an environment variable with the prefix ``BANCADA_`` or a line
of a ``.env`` file beside ``app.py``. Nothing else in the project reads the
environment.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Literal

from platformdirs import user_data_path
from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

Language = Literal["en", "pt"]


class Settings(BaseSettings):
    """The settings of one process."""

    model_config = SettingsConfigDict(
        env_prefix="BANCADA_", env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    home: Path = Field(default_factory=lambda: user_data_path("bancada", appauthor=False))
    """The one directory for models, database and logs."""
    language: Language | None = None
    """The language of the first screen; by default the browser's."""
    learner: str = Field(default="me", min_length=1, max_length=64, pattern=r"^[\w.@ -]+$")
    """The name under which progress is kept."""
    database_url: str | None = None
    """SQLAlchemy URL; by default SQLite under ``home``."""
    default_model: str = "smollm2-135m-instruct"
    """The catalog id of the model the first screen talks to."""
    hub_token: SecretStr | None = None
    """A Hugging Face token, for gated models."""
    offline: bool = False
    """Never try the network."""
    ollama_host: str = Field(
        default="http://127.0.0.1:11434", validation_alias=AliasChoices("BANCADA_OLLAMA_HOST", "OLLAMA_HOST")
    )
    """Where Ollama's server answers, if there is one; Ollama's own variable counts too."""
    endpoint: str = "http://127.0.0.1:1234/v1"
    """A server that speaks OpenAI's API; the default is where LM Studio listens."""
    endpoint_key: SecretStr | None = None
    """Its key, if it asks for one."""
    slots: int = Field(default=4, ge=1, le=64)
    """How many learners the shared engine answers at the same time."""
    context_tokens: int = Field(default=2048, ge=256, le=131_072)
    """Context of each slot of the shared engine."""

    @cached_property
    def models_dir(self) -> Path:
        """Where model files live."""
        return self.home / "models"

    @cached_property
    def jobs_dir(self) -> Path:
        """Where the locks of long work live."""
        return self.home / "jobs"

    @cached_property
    def logs_dir(self) -> Path:
        """Where engine logs live."""
        return self.home / "logs"

    @cached_property
    def toolchains_dir(self) -> Path:
        """Where the environments of other stacks live."""
        return self.home / "toolchains"

    @cached_property
    def store_url(self) -> str:
        """The database, as an SQLAlchemy URL."""
        return self.database_url or f"sqlite:///{self.home / 'bancada.db'}"
