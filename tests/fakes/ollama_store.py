"""What Ollama keeps on disk: blobs by digest, manifests by name, and a library of models that can be pulled.

The layout is Ollama's own (``blobs/sha256-<hex>``, ``manifests/<host>/<namespace>/<model>/<tag>``). Every model of
the library has the same weights, those of one GGUF. Quantizing is told but not done: its result is that GGUF.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from lib.errors import ModelDamaged
from lib.gguf.header import ArrayField, Header, read_header

Line = dict[str, Any]
Layer = dict[str, Any]

HOST, NAMESPACE, TAG = "registry.ollama.ai", "library", "latest"
# What the registry has, and what each model says it can do.
LIBRARY: Mapping[str, Sequence[str]] = {
    "smollm2:135m": ("completion", "tools"),
    "smollm2:latest": ("completion", "tools"),
    "all-minilm:latest": ("embedding",),
}
TEMPLATE = "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
LICENSE = "Apache License\nVersion 2.0, January 2004"
PARAMETERS = {"stop": ["<|im_start|>", "<|im_end|>"]}
# By the number that general.file_type has; as Ollama reads it, 0 (F32) is none.
FILE_TYPES = {
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    14: "Q4_K_S",
    15: "Q4_K_M",
    17: "Q5_K_M",
    18: "Q6_K",
    32: "BF16",
}
QUANTIZABLE = ("F16", "BF16", "F32")
QUANTIZED = ("F32", "F16", "Q4_K_S", "Q4_K_M", "Q8_0")
PIECE_BYTES = 4 * 2**20
# Ollama looks so often how far a download is.
TICK_S = 0.06
_IMAGE = "application/vnd.ollama.image."
_CONFIG = "application/vnd.docker.container.image.v1+json"
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


class Refusal(Exception):
    """An error as Ollama words it, with the HTTP status that it has when nothing was sent yet."""

    def __init__(self, error: str, status: int = 500) -> None:
        super().__init__(error)
        self.error, self.status = error, status


@dataclass(frozen=True)
class Name:
    """A model's name with everything that may be left out of it."""

    host: str
    namespace: str
    model: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> Name:
        """``[host/][namespace/]model[:tag]``, whether valid or not."""
        rest, tag = text, TAG
        if text.rfind(":") > text.rfind("/"):
            rest, _, tag = text.rpartition(":")
        *front, model = rest.rsplit("/", 2)
        host, namespace = [HOST, NAMESPACE][: 2 - len(front)] + front
        return cls(host, namespace, model, tag)

    @property
    def is_valid(self) -> bool:
        """Whether Ollama takes it."""
        return (
            all(re.fullmatch(r"\w[\w.-]{0,79}", part, re.ASCII) for part in (self.model, self.tag))
            and re.fullmatch(r"\w[\w-]{0,79}", self.namespace, re.ASCII) is not None
            and re.fullmatch(r"\w[\w.:-]{0,349}", self.host, re.ASCII) is not None
        )

    @property
    def short(self) -> str:
        """As the lists show it."""
        front = [self.host, self.namespace] if self.host != HOST else [self.namespace]
        return "/".join([*(front if front != [NAMESPACE] else []), f"{self.model}:{self.tag}"])

    def __str__(self) -> str:
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"


@dataclass(frozen=True)
class Model:
    """A model that is here; ``digest`` is its manifest's."""

    name: Name
    digest: str
    modified: datetime
    config: Mapping[str, Any]
    layers: Sequence[Layer]
    size_bytes: int
    weights: Path
    parts: Mapping[str, Sequence[str]]
    """The texts of its other layers by their kind: template, system, params, messages, license."""

    def text(self, kind: str) -> str:
        """The text of its last layer of a kind, or nothing."""
        return (self.parts.get(kind) or [""])[-1]

    @property
    def parameters(self) -> dict[str, Any]:
        """The options that it brings."""
        return dict(json.loads(self.text("params") or "{}"))

    @property
    def messages(self) -> list[Line]:
        """The messages that stand before every chat."""
        return list(json.loads(self.text("messages") or "[]"))

    @property
    def chat_template(self) -> str:
        """The template that the GGUF brings."""
        return str(header_of(self.weights).metadata.get("tokenizer.chat_template", ""))

    @property
    def capabilities(self) -> list[str]:
        """What it can do: as its config says, else as its chat template shows."""
        stated = self.config.get("capabilities")
        return list(stated) if stated else (["tools"] if "tools" in self.chat_template else []) + ["completion"]

    def details(self) -> Line:
        """The ``details`` of a list."""
        return {
            "parent_model": next((layer.get("from", "") for layer in self.layers if _kind(layer) == "model"), ""),
            "format": self.config["model_format"],
            "family": self.config["model_family"],
            "families": self.config["model_families"],
            "parameter_size": self.config["model_type"],
            "quantization_level": self.config["file_type"],
        }


class Store:
    """Everything below one folder, as ``OLLAMA_MODELS`` names it."""

    def __init__(self, folder: Path, gguf: Path) -> None:
        self._folder = folder
        self._gguf = gguf
        self._pulling = threading.Lock()
        (folder / "blobs").mkdir(parents=True, exist_ok=True)

    def blob(self, digest: str) -> Path:
        """Where a blob stands; raises Refusal for what is not a digest."""
        if not re.fullmatch("sha256[:-][0-9a-fA-F]{64}", digest):
            raise Refusal("invalid digest format", 400)
        return self._folder / "blobs" / digest.replace(":", "-")

    def add(self, content: bytes, media_type: str = "") -> Layer:
        """Keep a blob; the layer's ``status`` tells whether it was new."""
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        status = "using existing layer"
        if not self.blob(digest).exists():
            status = "creating new layer"
            self.blob(digest).write_bytes(content)
        return {"mediaType": media_type, "digest": digest, "size": len(content), "status": f"{status} {digest}"}

    def names(self) -> list[Name]:
        """The models that are here."""
        files = (self._folder / "manifests").glob("*/*/*/*")
        return [Name(*file.relative_to(self._folder / "manifests").parts) for file in files]

    def existing(self, name: Name) -> Name:
        """The name as it is written here, where only the letters' case differs."""
        return next((one for one in self.names() if str(one).lower() == str(name).lower()), name)

    def model(self, name: Name) -> Model | None:
        """A model that is here."""
        file = self._file(self.existing(name))
        try:
            content = file.read_bytes()
        except OSError:
            return None
        manifest = json.loads(content)
        parts: dict[str, list[str]] = {}
        for layer in manifest["layers"]:
            if _kind(layer) != "model":
                parts.setdefault(_kind(layer), []).append(self.blob(layer["digest"]).read_text("utf-8"))
        return Model(
            name=self.existing(name),
            digest=hashlib.sha256(content).hexdigest(),
            modified=datetime.fromtimestamp(file.stat().st_mtime).astimezone(),
            config=json.loads(self.blob(manifest["config"]["digest"]).read_bytes()),
            layers=manifest["layers"],
            size_bytes=sum(layer["size"] for layer in [*manifest["layers"], manifest["config"]]),
            weights=next(self.blob(layer["digest"]) for layer in manifest["layers"] if _kind(layer) == "model"),
            parts=parts,
        )

    def models(self) -> list[Model]:
        """Every model that is here, the newest first."""
        found = [model for name in self.names() if (model := self.model(name))]
        return sorted(found, key=lambda one: one.modified, reverse=True)

    def copy(self, source: Name, destination: Name) -> bool:
        """A second name for a model; whether there was one."""
        file = self._file(self.existing(source))
        if not file.exists():
            return False
        self._write(self.existing(destination), file.read_bytes())
        return True

    def delete(self, name: Name) -> bool:
        """Forget a model and the blobs that only it had; whether there was one."""
        file = self._file(self.existing(name))
        if not file.exists():
            return False
        before = self._digests()
        file.unlink()
        for digest in before - self._digests():
            self.blob(digest).unlink(missing_ok=True)
        return True

    def install(self, name: str) -> None:
        """Have a model of the library without pulling it."""
        config, *layers = self._published(Name.parse(name))
        for layer in (config, *layers):
            if _kind(layer) == "model":
                self._link_weights(layer["digest"])
            else:
                self.add(self._small[layer["digest"]])
        self._write_manifest(Name.parse(name), config, layers)

    def pull(self, name: Name) -> Generator[Line, None, None]:
        """Bring a model of the library here, from where a pull before this one was cancelled."""
        yield {"status": "pulling manifest"}
        config, *layers = self._published(name)
        with self._pulling:
            fetched = [layer for layer in (*layers, config) if not self.blob(layer["digest"]).exists()]
            for layer in (*layers, config):
                yield from self._download(layer)
            yield {"status": "verifying sha256 digest"}
            for layer in fetched:
                self._verify(layer["digest"])
        yield {"status": "writing manifest"}
        self._write_manifest(self.existing(name), config, layers)
        yield {"status": "success"}

    def create(self, asked: Mapping[str, Any]) -> Generator[Line, None, None]:
        """Make a model of another one or of uploaded files."""
        files: Mapping[str, str] = asked.get("files") or {}
        for path, digest in files.items():
            if not path or PurePosixPath(path).is_absolute() or {"..", "."} & set(path.split("/")):
                raise Refusal("file path must be relative", 400)
            if not digest:
                raise Refusal("invalid digest format", 400)
        name = Name.parse(asked.get("model") or asked.get("name") or "")
        if not name.is_valid:
            raise Refusal("invalid model name", 400)
        base: Mapping[str, Any] = {}
        if asked.get("from"):
            origin = Name.parse(asked["from"])
            if not origin.is_valid:
                raise Refusal("invalid model name", 400)
            if self.model(origin) is None:
                yield from (line for line in self.pull(origin) if line["status"] != "success")
            found = self.model(origin)
            assert found is not None
            base = found.config
            layers = [{**layer, "from": found.name.short, "status": _using(layer)} for layer in found.layers]
        elif "files" in asked:
            self._check_type(files)
            yield {"status": "parsing GGUF"}
            layers = [self._layer_of_file(files)]
        else:
            raise Refusal("neither 'from' or 'files' was specified", 400)
        quantize = (asked.get("quantize") or asked.get("quantization") or "").upper()
        layers[0] = yield from self._weights(layers[0], quantize, rewritten=not base)
        layers = self._with_texts(layers, asked)
        config = self.add(_encode(_config(self._header(layers[0]), quantize, base)), _CONFIG)
        for layer in layers:
            yield {"status": layer["status"]}
        yield {"status": "writing manifest"}
        self._write_manifest(self.existing(name), config, layers)
        yield {"status": "success"}

    def _check_type(self, files: Mapping[str, str]) -> None:
        """Raises Refusal unless the name or the content of the first file says GGUF."""
        for path, digest in files.items():
            if path.endswith(".gguf") or self._begins_as_gguf(digest):
                return
            break
        raise Refusal("unknown type", 400)

    def _layer_of_file(self, files: Mapping[str, str]) -> Layer:
        path, digest = next(iter(files.items()))
        if not self.blob(digest).exists():
            raise Refusal(f"open {self.blob(digest)}: no such file or directory")
        if not self._begins_as_gguf(digest):
            raise Refusal("supplied file was not in GGUF format", 400)
        size = self.blob(digest).stat().st_size
        layer = {"mediaType": f"{_IMAGE}model", "digest": digest, "size": size, "from": path}
        return {**layer, "status": _using(layer)}

    def _begins_as_gguf(self, digest: str) -> bool:
        try:
            with self.blob(digest).open("rb") as file:
                return file.read(4) == b"GGUF"
        except FileNotFoundError:
            return False

    def _weights(self, layer: Layer, quantize: str, rewritten: bool) -> Generator[Line, None, Layer]:
        """Progress of checking or quantizing a model layer; returns the layer that comes of it."""
        source = _file_type(self._header(layer))
        if quantize and quantize not in (*QUANTIZED, "BF16", "Q4_K"):
            known = ", ".join(QUANTIZED)
            raise Refusal(f"unsupported quantization type {quantize} - supported types are {known}")
        if quantize and source not in QUANTIZABLE:
            raise Refusal("quantization is only supported for F16, BF16 and F32 models")
        new = quantize not in ("", source)
        if not new and not rewritten:
            return layer
        what = f"quantizing {source} model to {quantize}" if new else "validating GGUF model"
        size = layer["size"]
        for part in range(1, 5):
            yield {"status": what, "digest": "0" * 19, "total": size, "completed": size * part // 4}
        yield {"status": "verifying conversion"}
        if not new:
            return layer
        digest = self._gguf_digest
        status = "using existing layer" if self.blob(digest).exists() else "creating new layer"
        self._link_weights(digest)
        return {**layer, "digest": digest, "size": self._gguf.stat().st_size, "status": f"{status} {digest}"}

    def _with_texts(self, layers: list[Layer], asked: Mapping[str, Any]) -> list[Layer]:
        """The layers with those that a request replaces or adds."""
        texts: list[tuple[str, str]] = [(kind, asked[kind]) for kind in ("template", "system") if asked.get(kind)]
        licences = asked.get("license") or []
        texts += [("license", one) for one in ([licences] if isinstance(licences, str) else licences)]
        if asked.get("parameters"):
            before = next((layer for layer in layers if _kind(layer) == "params"), None)
            kept = json.loads(self.blob(before["digest"]).read_bytes()) if before else {}
            texts.append(("params", json.dumps(kept | asked["parameters"])))
        if asked.get("messages"):
            texts.append(("messages", json.dumps(asked["messages"])))
        replaced = {kind for kind, _ in texts} - {"license"}
        added = [self.add(text.encode(), f"{_IMAGE}{kind}") for kind, text in texts]
        return [layer for layer in layers if _kind(layer) not in replaced] + added

    def _header(self, layer: Layer) -> Header:
        try:
            return header_of(self.blob(layer["digest"]))
        except ModelDamaged as error:
            raise Refusal(f"invalid file magic: {error.parameters['why']}") from error

    @cached_property
    def _gguf_digest(self) -> str:
        with self._gguf.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"

    @cached_property
    def _small(self) -> dict[str, bytes]:
        """The contents of the library's layers by digest, all but the weights."""
        contents = [TEMPLATE.encode(), LICENSE.encode(), _encode(PARAMETERS)]
        contents += [_encode(_config(header_of(self._gguf), "", {"capabilities": can})) for can in LIBRARY.values()]
        return {f"sha256:{hashlib.sha256(content).hexdigest()}": content for content in contents}

    def _published(self, name: Name) -> list[Layer]:
        """The config and the layers of a model of the library."""
        if name.short not in LIBRARY:
            raise Refusal("pull model manifest: file does not exist")
        digests = list(self._small)
        config = _encode(_config(header_of(self._gguf), "", {"capabilities": LIBRARY[name.short]}))
        media = (_CONFIG, *(f"{_IMAGE}{kind}" for kind in ("model", "template", "license", "params")))
        config_digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
        digests = [config_digest, self._gguf_digest, *digests[:3]]
        sizes = [len(self._small[one]) if one in self._small else self._gguf.stat().st_size for one in digests]
        return [
            {"mediaType": kind, "digest": digest, "size": size}
            for kind, digest, size in zip(media, digests, sizes, strict=True)
        ]

    def _download(self, layer: Layer) -> Iterator[Line]:
        digest, total = layer["digest"], layer["size"]
        line = {"status": f"pulling {digest[7:19]}", "digest": digest, "total": total}
        target = self.blob(digest)
        if target.exists():
            yield {**line, "completed": total}
            return
        part = target.with_name(f"{target.name}-partial")
        with self._open_remote(digest) as source, part.open("ab") as out:
            source.seek(out.tell())
            # Told of every now and then, of a large one for the first time when some of it has come.
            if total < PIECE_BYTES:
                yield {**line, "completed": out.tell()}
            while piece := source.read(PIECE_BYTES):
                out.write(piece)
                out.flush()
                if len(piece) == PIECE_BYTES:
                    time.sleep(TICK_S)
                yield {**line, "completed": out.tell()}
        part.replace(target)

    def _open_remote(self, digest: str) -> BinaryIO:
        return io.BytesIO(self._small[digest]) if digest in self._small else self._gguf.open("rb")

    def _verify(self, digest: str) -> None:
        with self.blob(digest).open("rb") as file:
            found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        if found != digest:
            self.blob(digest).unlink()
            raise Refusal(f"digest mismatch, file must be downloaded again: want {digest}, got {found}")

    def _link_weights(self, digest: str) -> None:
        if not self.blob(digest).exists():
            self.blob(digest).symlink_to(self._gguf.resolve())

    def _file(self, name: Name) -> Path:
        return self._folder / "manifests" / name.host / name.namespace / name.model / name.tag

    def _write(self, name: Name, content: bytes) -> None:
        self._file(name).parent.mkdir(parents=True, exist_ok=True)
        self._file(name).write_bytes(content)

    def _write_manifest(self, name: Name, config: Layer, layers: Sequence[Layer]) -> None:
        kept = [{key: value for key, value in one.items() if key != "status"} for one in (config, *layers)]
        self._write(name, _encode({"schemaVersion": 2, "mediaType": _MANIFEST, "config": kept[0], "layers": kept[1:]}))

    def _digests(self) -> set[str]:
        manifests = [json.loads(self._file(name).read_bytes()) for name in self.names()]
        return {layer["digest"] for one in manifests for layer in [*one["layers"], one["config"]]}


def list_entry(model: Model) -> Line:
    """A model as ``/api/tags`` lists it."""
    metadata = header_of(model.weights).metadata
    family = model.config["model_family"]
    lengths = {key: metadata.get(f"{family}.{key}") for key in ("context_length", "embedding_length")}
    return {
        "name": model.name.short,
        "model": model.name.short,
        "modified_at": model.modified.isoformat(),
        "size": model.size_bytes,
        "digest": model.digest,
        "details": model.details() | {key: value for key, value in lengths.items() if value},
        "capabilities": model.capabilities,
    }


def description(model: Model, verbose: bool) -> Line:
    """A model as ``/api/show`` tells it."""
    header = header_of(model.weights)
    hidden = ("general.name", "tokenizer.chat_template")
    info: Line = {key: _plain(value, verbose) for key, value in header.metadata.items() if key not in hidden}
    info["general.parameter_count"] = sum(tensor.weights for tensor in header.tensors)
    told = {
        "license": "\n".join(model.parts.get("license", ())),
        "modelfile": _modelfile(model),
        "parameters": "\n".join(f"{key:<30} {_go(value)}" for key, value in _each(model.parameters)),
        "template": model.text("template") or model.chat_template,
        "system": model.text("system"),
        "details": model.details(),
        "messages": model.messages,
        "model_info": info,
        "tensors": [{"name": one.name, "type": one.type, "shape": list(one.shape)} for one in header.tensors],
        "capabilities": model.capabilities,
        "modified_at": model.modified.isoformat(),
    }
    return {key: value for key, value in told.items() if value}


@lru_cache(maxsize=16)
def header_of(path: Path) -> Header:
    """A GGUF's header; a blob never changes."""
    return read_header(path)


def _config(header: Header, quantize: str, base: Mapping[str, Any]) -> Line:
    family = str(header.metadata.get("general.architecture", ""))
    return {
        "model_format": "gguf",
        "model_family": family,
        "model_families": [family],
        "model_type": _human(sum(tensor.weights for tensor in header.tensors)),
        "file_type": quantize or _file_type(header),
        "architecture": "amd64",
        "os": "linux",
        **({"capabilities": list(base["capabilities"])} if base.get("capabilities") else {}),
    }


def _modelfile(model: Model) -> str:
    lines = [
        '# Modelfile generated by "ollama show"',
        "# To build a new Modelfile based on this, replace FROM with:",
        f"# FROM {model.name.short}\n",
        f"FROM {model.weights}",
        f"TEMPLATE {_quoted(model.text('template') or '{{ .Prompt }}')}",
    ]
    if model.text("system"):
        lines.append(f"SYSTEM {_quoted(model.text('system'))}")
    lines += [f"PARAMETER {key} {_quoted(str(value))}" for key, value in _each(model.parameters)]
    lines += [f"LICENSE {_quoted(text)}" for text in model.parts.get("license", ())]
    lines += [f"MESSAGE {one['role']} {_quoted(one.get('content', ''))}" for one in model.messages]
    return "\n".join(lines) + "\n"


def _each(parameters: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """One pair for every value, for those of a list too."""
    return [
        (key, value)
        for key, found in sorted(parameters.items())
        for value in (found if isinstance(found, list) else [found])
    ]


def _plain(value: object, verbose: bool) -> object:
    if isinstance(value, ArrayField):
        return list(value.values) if verbose and value.values is not None else None
    return value


def _go(value: object) -> str:
    return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value, ensure_ascii=False)


def _quoted(text: str) -> str:
    if "\n" not in text and text == text.strip(" "):
        return text
    return f'"""{text}"""' if '"' in text else f'"{text}"'


def _human(number: int) -> str:
    for unit, name, digits in ((10**9, "B", 1), (10**6, "M", 2)):
        if number >= unit:
            return f"{number / unit:.{0 if number % unit == 0 else digits}f}{name}"
    return f"{number / 1000:.0f}K" if number >= 1000 else str(number)


def _file_type(header: Header) -> str:
    number = header.metadata.get("general.file_type")
    return FILE_TYPES.get(number, "unknown") if isinstance(number, int) else "unknown"


def _kind(layer: Layer) -> str:
    return str(layer["mediaType"]).removeprefix(_IMAGE)


def _using(layer: Layer) -> str:
    return f"using existing layer {layer['digest']}"


def _encode(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
