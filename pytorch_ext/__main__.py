"""python -m pytorch_ext COMMAND: each command is a module with add_arguments(parser) and run(arguments)."""

import argparse
import importlib
import sys

COMMANDS = {
    "doctor": ("pytorch_ext.doctor", "every path, available or not, with the reason and the cure"),
    "build": ("pytorch_ext.build", "compile the native part against the torch that is installed"),
}


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pytorch_ext")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (module, summary) in COMMANDS.items():
        command = importlib.import_module(module)
        command_parser = commands.add_parser(name, help=summary, description=command.__doc__)
        command.add_arguments(command_parser)
        command_parser.set_defaults(run=command.run)
    arguments = parser.parse_args(argv)
    return arguments.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
