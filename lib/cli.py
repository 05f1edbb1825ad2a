"""The command line: ``python -m lib.cli COMMAND``. Runs the same steps as page and notebook.

Exit status: 0 done, 1 something failed, 2 the command or a parameter is wrong, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from lib.course import notebook
from lib.course.bar import drain
from lib.course.cards import briefs, recall, words_of
from lib.course.draw import chief_facts, to_text
from lib.course.export import FORMS
from lib.course.lab import Step
from lib.course.labs import find_step, labs
from lib.course.run import run_here
from lib.errors import BadParameter, BancadaError, CannotWrite, InputError
from lib.text import LANGUAGES, load_words
from lib.workbench import Workbench


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives back the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal or a file of few characters gets a question mark, not a traceback.
            stream.reconfigure(errors="replace")
    options = _parser().parse_args(_language_first(sys.argv[1:] if arguments is None else list(arguments)))
    try:
        workbench = Workbench.open(**({"language": options.lang} if options.lang else {}))
    except ValidationError as error:
        for one in error.errors():
            print(f"BANCADA_{'_'.join(map(str, one['loc'])).upper()}: {one['msg']}", file=sys.stderr)
        return 2
    try:
        status: int = options.command(workbench, options)
        sys.stdout.flush()
        return status
    except BancadaError as error:
        what, why, repair = load_words(workbench.language).error(error)
        print(f"{what}\n{why}\n→ {repair}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except BrokenPipeError:
        # The reader, as ``head``, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(load_words(workbench.language)("cancelled"), file=sys.stderr)
        return 130
    finally:
        workbench.close()


def _language_first(arguments: list[str]) -> list[str]:
    """``--lang`` may stand anywhere; argparse wants it before the command."""
    if "--lang" not in arguments[:-1]:
        return arguments
    at = arguments.index("--lang")
    return [*arguments[at : at + 2], *arguments[:at], *arguments[at + 2 :]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lib.cli", description="Bancada on the command line.")
    parser.add_argument("--lang", choices=sorted(LANGUAGES), help="language of the output")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _command(commands, "list", _list, "labs, steps and their parameters")
    run = _command(commands, "run", _run, "run a step: run choose.estimate --context_tokens 8192")
    run.add_argument("step", metavar="LAB.STEP")
    run.add_argument("--prediction", type=float, help="your guess, in the unit the step asks for")
    run.add_argument("--json", action="store_true", help="print the result as JSON")
    run.add_argument("parameters", nargs=argparse.REMAINDER, help="--name value …")
    _command(commands, "models", _models, "the models that are here")
    fetch = _command(commands, "fetch", _fetch, "bring a model here")
    fetch.add_argument("model", nargs="?")
    importing = _command(commands, "import", _import, "take in a GGUF file")
    importing.add_argument("file", type=Path)
    _command(commands, "toolchains", _toolchains, "the environments for conversions, and whether they are here")
    building = _command(commands, "toolchain", _toolchain, "build one, or mend it: toolchain openvino")
    building.add_argument("name", metavar="NAME")
    cards = _command(commands, "cards", _cards, "the run cards that are kept, newest first")
    cards.add_argument("--lab", help="only those of one lab")
    export = _command(commands, "export", _export, "take run cards along: export --as html --output cards.html")
    export.add_argument("ids", nargs="*", metavar="ID", help="a card's id or how it begins; all cards without one")
    export.add_argument(
        "--as", dest="form", choices=list(FORMS), default="json", help="tables: the results' tables, as CSV"
    )
    export.add_argument("--lab", help="only those of one lab")
    export.add_argument("--output", type=Path, metavar="FILE", help="where to write, instead of to the terminal")
    _command(commands, "jobs", _jobs, "what runs on this machine, and what waits")
    _command(commands, "doctor", _doctor, "check everything, with repairs")
    books = _command(commands, "notebooks", _notebooks, "build the notebooks from the labs")
    books.add_argument("--check", action="store_true", help="compare only; fails on a difference")
    return parser


def _command(commands: argparse._SubParsersAction, name: str, function: object, text: str) -> argparse.ArgumentParser:  # type: ignore[type-arg]
    made: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    made.set_defaults(command=function)
    return made


def _list(workbench: Workbench, options: argparse.Namespace) -> int:
    for lab in labs():
        print(f"{lab.id}: {lab.lesson(workbench.language).title}")
        for step in lab.steps.values():
            print(f"  {step.key}")
            for one in step.parameters:
                print(f"      --{one.name} {one.default!r}    {one.allowed()[:90]}")
    return 0


def _run(workbench: Workbench, options: argparse.Namespace) -> int:
    step = find_step(options.step)
    # What stands after the step's name is the step's, except the options of ``run`` itself.
    extra, unknown = _parser_of(step).parse_known_args(options.parameters)
    if unknown:
        known = ", ".join(f"--{one.name}" for one in step.parameters)
        raise BadParameter(name=step.key, value=" ".join(unknown), allowed=known or "–")
    given = {
        one.name: one.parse(getattr(extra, one.name)) for one in step.parameters if getattr(extra, one.name) is not None
    }
    prediction = extra.prediction if extra.prediction is not None else options.prediction
    run = run_here(step, workbench, given, prediction)
    if options.json or extra.json:
        print(json.dumps({"step": step.key, "parameters": run.parameters, **json.loads(run.result.to_json())}))
        return 0
    words = step.lab.words(workbench.language)
    print(to_text(run, words))
    print("\n" + words("cli.run_kept", card=run.card_id[:12], took=words.value("took_s", run.duration_s)))
    return 0


def _parser_of(step: Step) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m lib.cli run {step.key}", allow_abbrev=False)
    for one in step.parameters:
        names = dict.fromkeys([f"--{one.name}", f"--{one.name.replace('_', '-')}"])
        parser.add_argument(*names, dest=one.name, help=one.allowed().replace("%", "%%"))
    parser.add_argument("--prediction", type=float)
    parser.add_argument("--json", action="store_true")
    return parser


def _models(workbench: Workbench, options: argparse.Namespace) -> int:
    words = load_words(workbench.language)
    for model in workbench.models.local():
        print(f"{model.id:<32} {words.size(model.size_bytes):>10}  {model.path}")
    return 0


def _fetch(workbench: Workbench, options: argparse.Namespace) -> int:
    model = options.model or workbench.settings.default_model
    drain(workbench.models.fetch(model), load_words(workbench.language))
    print(load_words(workbench.language)("cli.fetched", model=model, path=workbench.models.path(model)))
    return 0


def _import(workbench: Workbench, options: argparse.Namespace) -> int:
    if not options.file.is_file():
        raise BadParameter(name="FILE", value=options.file, allowed="a GGUF file that exists")
    drain(workbench.models.import_file(options.file), load_words(workbench.language))
    print(load_words(workbench.language)("cli.imported", path=options.file.name))
    return 0


def _toolchains(workbench: Workbench, options: argparse.Namespace) -> int:
    words = load_words(workbench.language)
    for one in workbench.toolchains.states():
        state = words("cli.toolchain_ready" if one.ready else f"cli.toolchain_{one.why}")
        size = f"~ {words.size(one.need_bytes)}" if one.size_bytes is None else words.size(one.size_bytes)
        print(f"{one.name:<15} {state:<22} {size:>10}  {words(f'toolchains.{one.name}')}")
    return 0


def _toolchain(workbench: Workbench, options: argparse.Namespace) -> int:
    words = load_words(workbench.language)
    path = drain(workbench.toolchains.renew(options.name), words)
    print(words("cli.toolchain_built", toolchain=options.name, path=path))
    return 0


def _cards(workbench: Workbench, options: argparse.Namespace) -> int:
    words = load_words(workbench.language)
    found = briefs(workbench.store, workbench.learner, {}, options.lab)
    for one in found:
        facts = chief_facts(one.facts, words_of(one.lab, workbench.language))[:3]
        took = words.value("took_s", one.duration_s)
        shown = " · ".join(f"{name} {value}" for name, value in facts)
        print(f"{one.id[:12]}  {one.finished_at:%Y-%m-%d %H:%M}  {one.key:<24} {took:>10}  {shown}".rstrip())
    if not found:
        print(words("cli.cards_none"))
    return 0


def _export(workbench: Workbench, options: argparse.Namespace) -> int:
    words, form = load_words(workbench.language), FORMS[options.form]
    ids = _asked(options.ids, workbench.store.card_ids(workbench.learner, options.lab))
    cards = workbench.store.cards_of(workbench.learner, ids)
    made = form.make([recall(card, workbench.language) for card in cards], words)
    if options.output is None:
        print(made.decode("utf-8-sig").replace("\r\n", "\n"), end="")
        return 0
    try:
        options.output.write_bytes(made)
    except OSError as error:
        raise CannotWrite(path=options.output, why=error.strerror or str(error)) from error
    print(words("cli.exported", count=len(cards), path=options.output))
    return 0


def _asked(asked: Sequence[str], known: Sequence[str]) -> list[str]:
    """The ids that begin as asked, all without a question; raises BadParameter for one that is none."""
    for one in asked:
        if not one or not any(each.startswith(one) for each in known):
            raise BadParameter(name="ID", value=one, allowed="python -m lib.cli cards")
    return [each for each in known if not asked or each.startswith(tuple(asked))]


def _jobs(workbench: Workbench, options: argparse.Namespace) -> int:
    from lib.jobs import Jobs

    words, jobs = load_words(workbench.language), Jobs(workbench)
    jobs.recover()
    for job in jobs.active():
        elapsed = words.value("elapsed_s", job.elapsed_s) if job.started_at else "–"
        state = words.choice(job.state, "job_state")
        print(f"{state:<12} {f'{job.lab}.{job.step}':<24} {elapsed:>10}  {', '.join(job.learners)}")
    if not jobs.active():
        print(words("cli.jobs_none"))
    return 0


def _doctor(workbench: Workbench, options: argparse.Namespace) -> int:
    from lib.doctor import examine

    words, failed, count = load_words(workbench.language), 0, 0
    for finding in examine(workbench):
        count += 1
        failed += finding.ok is False
        mark = {True: "[OK]  ", False: "[FAIL]", None: "[–]   "}[finding.ok]
        about = {name: words.value(name, value) for name, value in finding.parameters.items()}
        print(f"{mark} {words(f'doctor.{finding.check}', **about):<28} {finding.detail}")
        if finding.error is not None:
            print("       " + "\n       ".join(words.error(finding.error)))
        elif finding.ok is not True:
            print(f"       → {words(f'doctor.repair_{finding.check}', **about)}")
    print(words("cli.doctor_failed", count=failed, all=count) if failed else words("cli.doctor_ok"))
    return 1 if failed else 0


def _notebooks(workbench: Workbench, options: argparse.Namespace) -> int:
    differ = []
    for lab in labs():
        for language in LANGUAGES:
            path = notebook.path_of(lab, language)
            if not options.check:
                print(notebook.write(lab, language))
            elif not path.exists() or path.read_text(encoding="utf-8") != notebook.build(lab, language):
                differ.append(f"{language}/{path.name}")
    if differ:
        print(load_words(workbench.language)("cli.notebooks_differ", names=", ".join(differ)), file=sys.stderr)
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
