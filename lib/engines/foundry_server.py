"""The child process of the Foundry engine: Foundry Local's own web service, with a model of the learner's.

The service serves only what a catalog lists, never what is registered locally; so the process
keeps a catalog of its own on loopback, with one entry. Its form is inferred from what SDK 2.2.1 reads.
"""

from __future__ import annotations

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lib.engines.child_server import Ready, run
from lib.files import link
from lib.scratch import scratch


def serve(options: dict[str, Any], ready: Ready) -> None:
    """Load the model and serve until standard input closes."""
    # ``disable_nonessential_telemetry`` still reports the process; in CI nothing is sent.
    os.environ["CI"] = "true"
    from foundry_local_sdk import Configuration, FoundryLocalManager

    name = str(options["model"]).rpartition(":")[0]
    with scratch(Path(options["home"])) as folder:
        cache = folder / "cache"
        _link(Path(options["path"]), cache / "local" / name / "v1", name)
        FoundryLocalManager.initialize(
            Configuration(
                app_name="bancada",
                app_data_dir=str(folder / "data"),
                model_cache_dir=str(cache),
                logs_dir=str(folder / "logs"),
                disable_nonessential_telemetry=True,
                web=Configuration.WebService(urls="http://127.0.0.1:0"),
                catalog_urls=[(_catalog(_entry(name, options["context_tokens"])), None)],
            )
        )
        manager = FoundryLocalManager.instance
        model = manager.get_catalog().get_model(name) if manager else None
        if manager is None or model is None:
            raise RuntimeError(f"Foundry Local does not see {name}")
        model.load()
        manager.start_web_service()
        ready((manager.urls or [""])[0])
        threading.Event().wait()


def _link(source: Path, place: Path, name: str) -> None:
    place.mkdir(parents=True)
    for one in source.iterdir():
        link(one, place / one.name)
    told = {"Name": f"{name}:1", "PromptTemplate": None}
    (place / "inference_model.json").write_text(json.dumps(told), encoding="utf-8")


def _entry(name: str, context_tokens: int) -> dict[str, Any]:
    asset = f"azureml://registries/local/models/{name}/versions/1"
    device = {"modelType": "ONNX", "device": "cpu", "executionProvider": "CPUExecutionProvider"}
    return {
        "assetId": asset,
        "entityId": asset,
        "name": name,
        "version": "1",
        "inferenceTasks": ["chat-completion"],
        "modelLimits": {"textLimits": {"inputContextWindow": context_tokens, "maxOutputTokens": context_tokens}},
        "variantInformation": {"parents": [{"assetId": asset}], "variantMetadata": device},
    }


def _catalog(entry: dict[str, Any]) -> str:
    """The address of a catalog with one model."""
    answer = json.dumps({"value": [entry]}).encode()

    class Catalog(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Catalog)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/asset-gallery/v1.0/models"


if __name__ == "__main__":
    run(serve)
