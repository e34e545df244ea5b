"""``trivium export``."""

from __future__ import annotations

from shared.app import find
from shared.cli.arguments import Export
from shared.cli.printing import print_line
from shared.errors import InvalidInputError
from shared.recipe_file import read_recipe_file


def run(command: Export) -> int:
    """Exports a run's best checkpoint. The exported programs are compared with torch."""
    app = find(str(read_recipe_file(command.run / "recipe.yaml")["app"]))
    from shared.deploy.export import export
    from shared.deploy.programs.program import ProgramError
    from shared.deploy.programs.table import find_program

    names = [name.strip() for name in command.programs.split(",") if name.strip()]
    for name in names:
        find_program(name)
    for path in command.calibrate:
        if not path.exists():
            raise InvalidInputError(f"{path} does not exist; name existing input files with --calibrate")
    try:
        artifact = export(command.run, app, command.registry, programs=names, files=command.calibrate)
    except ProgramError as error:
        raise InvalidInputError(str(error)) from error
    sizes = ", ".join(
        f"{name} {file_entry['bytes'] / 1e6:.1f} MB" for name, file_entry in artifact.manifest.files.items()
    )
    print_line(f"{artifact.path}: {sizes}")
    if (reason := artifact.manifest.training.get("without_onnx")) is not None:
        print_line(f"no ONNX was made: {reason}")
        print_line("trivium serve and trivium predict compute this artifact; Triton and ONNX Runtime cannot")
    for name, program in artifact.manifest.programs.items():
        differs = f"differs from torch by {program.error:.1e} on {program.inputs}"
        print_line(f"{name}: {program.latency_ms} ms a call, {differs}")
    return 0
