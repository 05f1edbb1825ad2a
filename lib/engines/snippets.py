"""The request that a learner just made, as a program of their own: Python, JavaScript (Node) and cURL.

Each runs as it stands against an OpenAI API. A key is never written down: the program reads it from the environment.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KEY = "BANCADA_ENDPOINT_KEY"


@dataclass(frozen=True)
class ChatRequest:
    """A chat: the address up to ``/v1``, the model, the messages, and OpenAI's options; whether it wants a key."""

    address: str
    model: str
    messages: Sequence[Mapping[str, str]]
    options: Mapping[str, Any]
    wants_key: bool = False

    @property
    def body(self) -> dict[str, Any]:
        """What is sent."""
        return {"model": self.model, "messages": [dict(one) for one in self.messages], **self.options}


def python(request: ChatRequest) -> str:
    """A program for Python with the openai package."""
    key = f'os.environ["{KEY}"]' if request.wants_key else '"none"'
    arguments = "".join(f"    {name}={value!r},\n" for name, value in request.body.items())
    imports = "import os\n\n" if request.wants_key else ""
    return (
        f"{imports}from openai import OpenAI\n\n"
        f"client = OpenAI(base_url={request.address!r}, api_key={key})\n"
        f"answer = client.chat.completions.create(\n{arguments})\n"
        "print(answer.choices[0].message.content)\n"
    )


def javascript(request: ChatRequest) -> str:
    """A program for Node 18 or newer, without packages; saved as ``.mjs``."""
    headers = '"Content-Type": "application/json"'
    if request.wants_key:
        headers += f", Authorization: `Bearer ${{process.env.{KEY}}}`"
    body = json.dumps(request.body, indent=2, ensure_ascii=False)
    return (
        f"const response = await fetch({json.dumps(request.address + '/chat/completions')}, {{\n"
        '  method: "POST",\n'
        f"  headers: {{ {headers} }},\n"
        f"  body: JSON.stringify({body}),\n"
        "});\n"
        "if (!response.ok) throw new Error(`${response.status} ${await response.text()}`);\n"
        "const answer = await response.json();\n"
        "console.log(answer.choices[0].message.content);\n"
    )


def curl(request: ChatRequest) -> str:
    """A command for a shell of Linux, macOS or WSL."""
    key = f' \\\n  -H "Authorization: Bearer ${KEY}"' if request.wants_key else ""
    body = shlex.quote(json.dumps(request.body, indent=2, ensure_ascii=False))
    return (
        f"curl --fail-with-body --silent --show-error {shlex.quote(request.address + '/chat/completions')} \\\n"
        f"  -H 'Content-Type: application/json'{key} \\\n"
        f"  -d {body}\n"
    )
