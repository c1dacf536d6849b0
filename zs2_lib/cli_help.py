"""The command line's parser, and its --help: an overview, or one group of options at a time, each fits a screen."""

from __future__ import annotations

import argparse
import textwrap

from zs2_lib.cli_say import Refused

WIDTH = 78
BASICS = "basics"


class Parser(argparse.ArgumentParser):
    """Options in groups, which --help shows one at a time by the first word of their names; `takes` has to be there."""

    def __init__(self, takes: str, **how):
        super().__init__(add_help=False, **how)
        self.takes = takes
        self.groups: dict[str, argparse._ArgumentGroup] = {}
        self.basics = self.add_argument_group(BASICS)
        self.basics.add_argument(
            "-h", "--help", action=Help, nargs="?", metavar="GROUP", help="An overview, one group, or all."
        )

    def add_argument_group(self, title: str | None = None, *more, **how):
        group = super().add_argument_group(title, *more, **how)
        if hasattr(self, "groups"):  # the parser's own come before
            self.groups[title.removeprefix("the ").split()[0].lower()] = group
        return group

    def error(self, message: str):
        raise Refused(message)

    def overview(self) -> str:
        """The groups, with the names of their options."""
        lines = [self.usage_line(), "", *textwrap.wrap(self.description, WIDTH), ""]
        for name, group in self.groups.items():
            options = [action.option_strings[-1] for action in group._group_actions if action.option_strings]
            lines += textwrap.wrap(
                f"{name}: {' '.join(options)}", WIDTH, subsequent_indent="    ", break_on_hyphens=False
            )
        return "\n".join([*lines, "", f"{self.prog} --help GROUP says more of one, --help all of all of them.", ""])

    def usage_line(self) -> str:
        return f"usage: {self.prog} {self.takes} [options]"

    def help_on(self, name: str) -> str:
        """What the options of one group do. Raises Refused for one that there is not."""
        if name not in self.groups:
            raise Refused(f"--help: {name!r} is not allowed; give {', '.join(self.groups)} or all")
        group, formatter = self.groups[name], argparse.HelpFormatter(self.prog, max_help_position=20, width=100)
        formatter.start_section(group.title)
        formatter.add_text(group.description)
        formatter.add_arguments(group._group_actions)
        formatter.end_section()
        return formatter.format_help()


class Help(argparse.Action):
    def __call__(self, parser, namespace, name, option_string=None):
        if name == "all":
            print(f"{parser.overview()}\n" + "\n".join(parser.help_on(name) for name in parser.groups))
        else:
            print(parser.help_on(name) if name else parser.overview(), end="")
        parser.exit()
