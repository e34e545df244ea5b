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
    """Predicts and writes result.json, picture.png and the application's own files. No file is left half-written."""
    # Imports create a million objects that live on. Collecting after every 700 allocations would take a tenth of the
    # command's start-up time.
    gc.set_threshold(10_000)
    app = find(command.app)
    options = named_options(command.option)
    if not command.inputs:
        raise InvalidInputError(f"name a file or a folder: trivium predict {app.name} INPUT --out DIR")
    for path in command.inputs:
        if not path.exists():
            raise InvalidInputError(f"{path} does not exist; name a file or a folder to predict on")
    if command.out.exists() and not command.out.is_dir():
        raise InvalidInputError(f"{command.out} is a file; name an output directory with --out")
    if command.each:
        return _predict_folder(app, command, options)
    try:
        command.out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{command.out.name}-", dir=command.out.parent))
    except OSError as error:
        raise InvalidInputError(
            f"{command.out} cannot be created: {error.strerror}; name another directory with --out"
        ) from error
    try:
        from shared.deploy.opening import open_predictor
        from shared.deploy.predictor import Request, answer

        opened = open_predictor(
            app, artifact=command.artifact, device=command.device, program=command.program, lazy=True
        )
        response = answer(opened.predictor, Request(files=command.inputs, options=options), opened.codec)
        text = json.dumps(response.result, indent=2, allow_nan=False) + "\n"
        (staging / "result.json").write_text(text, encoding="utf-8")
        (staging / "picture.png").write_bytes(response.picture)
        for name, content in response.files.items():
            (staging / name).write_bytes(content)
        command.out.mkdir(exist_ok=True)
        for file in staging.iterdir():
            file.replace(command.out / file.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    for sentence in sentences(response.result):
        print_line(sentence)
    if (table := result_table(app, response.result)) is not None:
        print_table(table) if table.rows else print_line(table.title)
    print_line(f"Wrote into {command.out}: {', '.join(('result.json', 'picture.png', *response.files))}")
    return 0


def _predict_folder(app: App, command: Predict, options: Mapping[str, str]) -> int:
    if app.predict_folder is None:
        raise InvalidInputError(f"{app.name} cannot predict the cases of a folder one by one; omit --each")
    if len(command.inputs) != 1:
        raise InvalidInputError(f"--each takes one folder or file: trivium predict {app.name} FOLDER --each --out DIR")
    from shared.deploy.opening import open_predictor

    opened = open_predictor(app, artifact=command.artifact, device=command.device, program=command.program, lazy=True)
    num_skipped = app.predict_folder(opened.predictor, command.inputs[0], command.out, options, print_line)
    return 1 if num_skipped else 0
