"""``trivium predict``."""

from __future__ import annotations

import gc
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from shared.app import App, find
from shared.cli.arguments import Predict
from shared.cli.options import named_options
from shared.cli.printing import print_line, print_table
from shared.cli.results import result_table, sentences
from shared.errors import InvalidInputError


def run(command: Predict) -> int:
    """Predicts and writes result.json, picture.png and the app's own files; nothing is left half-written."""
    # Importing makes a million objects that stay; to look for cycles among them after every 700 takes a tenth of the
    # command's start.
    gc.set_threshold(10_000)
    app = find(command.app)
    options = named_options(command.option)
    if not command.inputs:
        raise InvalidInputError(f"name a file or a folder: trivium predict {app.name} INPUT --out DIR")
    for path in command.inputs:
        if not path.exists():
            raise InvalidInputError(f"{path} does not exist; name a file or a folder to predict on")
    if command.out.exists() and not command.out.is_dir():
        raise InvalidInputError(f"{command.out} is a file; name a directory for what comes out")
    if command.each:
        return _predict_folder(app, command, options)
    try:
        command.out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{command.out.name}-", dir=command.out.parent))
    except OSError as error:
        raise InvalidInputError(
            f"{command.out} cannot be made: {error.strerror}; name another directory with --out"
        ) from error
    try:
        from shared.deploy.opening import open_predictor
        from shared.deploy.predictor import Request, answer

        opened = open_predictor(
            app, artifact=command.artifact, device=command.device, program=command.program, on_use=True
        )
        response = answer(opened.predictor, Request(files=command.inputs, options=options), opened.codec)
        text = json.dumps(response.result, indent=2, allow_nan=False) + "\n"
        (aside / "result.json").write_text(text, encoding="utf-8")
        (aside / "picture.png").write_bytes(response.picture)
        for name, content in response.files.items():
            (aside / name).write_bytes(content)
        command.out.mkdir(exist_ok=True)
        for file in aside.iterdir():
            file.replace(command.out / file.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    for sentence in sentences(response.result):
        print_line(sentence)
    if (table := result_table(app, response.result)) is not None:
        print_table(table) if table.rows else print_line(table.title)
    print_line(f"Wrote into {command.out}: {', '.join(('result.json', 'picture.png', *response.files))}")
    return 0


def _predict_folder(app: App, command: Predict, options: Mapping[str, str]) -> int:
    if app.predict_folder is None:
        raise InvalidInputError(f"{app.name} does not go through folders one by one; leave --each out")
    if len(command.inputs) != 1:
        raise InvalidInputError(f"--each takes one folder or file: trivium predict {app.name} FOLDER --each --out DIR")
    from shared.deploy.opening import open_predictor

    opened = open_predictor(app, artifact=command.artifact, device=command.device, program=command.program, on_use=True)
    left_out = app.predict_folder(opened.predictor, command.inputs[0], command.out, options, print_line)
    return 1 if left_out else 0
