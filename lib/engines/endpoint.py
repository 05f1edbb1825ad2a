"""Any server that speaks OpenAI's API: LM Studio, llama-server, a cloud. It is not ours to start or stop."""

from __future__ import annotations

from collections.abc import Iterator

from openai import OpenAI
from pydantic import BaseModel

from lib.course.result import Progress
from lib.engines.address import base_url, http_client
from lib.engines.base import EngineInfo, Status
from lib.engines.chat import translated
from lib.errors import BancadaError, EngineAway, NotAnEngine, UnknownModel

LOOK_S = 5.0
# Servers that ask for no key must still be sent one by OpenAI's client.
NO_KEY = "none"


class _Model(BaseModel):
    id: str


class _Page(BaseModel):
    data: list[_Model]


class EndpointEngine:
    """A server at an address, with a key if it asks for one."""

    def __init__(self, address: str, key: str | None = None) -> None:
        self._url = base_url(address)
        self._http = http_client(self._url)
        self._key = key or NO_KEY

    @property
    def info(self) -> EngineInfo:
        """Identity and capabilities: those of OpenAI's API, of which a server may lack some."""
        return EngineInfo("endpoint", "OpenAI API", json_schema=True)

    def status(self) -> Status:
        """Whether it answers, as this learner, with a list of models."""
        try:
            models = self._listed()
        except EngineAway as error:
            return Status("stopped", address=self._url, incident=str(error.parameters["why"]))
        except BancadaError as error:
            return Status("failed", address=self._url, incident=str(error))
        return Status("ready", model=models[0] if len(models) == 1 else None, address=self._url)

    def models(self) -> tuple[str, ...]:
        """The models that it says it has; none when it does not answer."""
        try:
            return self._listed()
        except BancadaError:
            return ()

    def ensure(self, model: str) -> Iterator[Progress]:
        """See that the server answers and has the model; raises UnknownModel and EngineError kinds."""
        yield Progress(0, 0, "ask_engine", self._url)
        known = self._listed()
        if model not in known:
            raise UnknownModel(model=model, known=", ".join(known))

    def release(self, model: str | None = None) -> None:
        """Nothing: whoever runs the server decides what it keeps loaded."""

    def client(self, model: str) -> OpenAI:  # noqa: ARG002  one client for every model
        """A client for the server; that it answers shows when it is used."""
        return OpenAI(base_url=self._url, api_key=self._key, http_client=self._http, max_retries=0)

    def _listed(self) -> tuple[str, ...]:
        with translated(LOOK_S, self._url):
            answer = self.client("").with_options(timeout=LOOK_S).models.with_raw_response.list().content
        try:
            return tuple(one.id for one in _Page.model_validate_json(answer).data)
        except ValueError as error:
            raise NotAnEngine(address=self._url, why=repr(answer[:80])) from error
