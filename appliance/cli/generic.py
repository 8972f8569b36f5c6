"""`appliance get|create|set|delete PATH`: any method of the API; help comes from the appliance's own OpenAPI document."""

from __future__ import annotations

from appliance.cli.arguments import Arguments
from appliance.cli.client import VERBS
from appliance.cli.context import Context
from appliance.cli.errors import CliError, Exit


def run(context: Context, word: str, arguments: Arguments) -> None:
    """Call the method, or describe it."""
    if arguments.wants_help and not arguments.positional:
        from appliance.cli.help import API

        print(API, end="")
        return
    if len(arguments.positional) != 1:
        raise CliError(f"usage: appliance {word} PATH [--name value …]; see appliance {word} --help", Exit.USAGE)
    path = "/" + arguments.positional[0].strip("/")
    if arguments.wants_help:
        from appliance.cli.help import describe

        print("\n".join(describe(context.api.document(), word, path)))
        return
    context.finish(context.api.call(VERBS[word], path, arguments.params))
