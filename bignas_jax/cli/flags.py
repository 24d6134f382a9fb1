"""The command line of the scripts: a recipe, overrides of its fields, and a few flags."""

import argparse
import contextlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from bignas_jax.config import distributed
from bignas_jax.config import fields as config_lib
from bignas_jax.config.files import load_run_config
from bignas_jax.config.names import field_of
from bignas_jax.config.options import Options
from bignas_jax.config.recipes import DEFAULT_CONFIG, find_config, load_config
from bignas_jax.errors import ConfigError
from bignas_jax.programs import deterministic
from bignas_jax.text import tell


def refuse(program: str, message: str) -> NoReturn:
    """Ends the program as a user's mistake does: one line on stderr, exit code 2."""
    complain(program, message)
    raise SystemExit(2)


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes end as those of the other commands do."""

    def error(self, message):
        refuse(self.prog, message)


def complain(program: str, message: str) -> None:
    """One line on stderr; with `--debug` the traceback of the error that is handled goes before it."""
    trace()
    tell(f"{os.path.basename(program)}: {message}")


def trace() -> None:
    """The traceback of the error that is handled, on stderr; nothing without `--debug`."""
    if _debug and sys.exc_info()[0] is not None:
        traceback.print_exc()


_debug = False


def take_debug(argv: Sequence[str]) -> list[str]:
    """The arguments without `--debug`, which is known to this module from then on."""
    global _debug
    kept = [argument for argument in argv if argument not in ("--debug", "-debug")]
    _debug = len(kept) < len(argv)
    return kept


def parse(argv: Sequence[str], doc: str, extra: Callable[[flags.FlagValues], None] | None = None,
          of_run: bool = False, positional: str = "") -> tuple[Options, SimpleNamespace]:
    """Reads a script's command line. A deterministic run has its environment completed, before JAX starts.

    Args:
      argv: `sys.argv`: the program, `--config FILE`, `--config.FIELD=VALUE`, `--workdir DIR`, extra flags.
      doc: the script's docstring, for `--help`.
      extra: defines the script's own absl flags on the FlagValues it is given.
      of_run: take the config that a run left in its folder, where there is one, in place of the recipe's.
      positional: the name of the one argument that is no flag; without a name there is none. With '...' at its end,
        such as 'IMAGE...', there are one or more.

    Returns:
      The options of the run, and the arguments: `workdir` (default `exp/<name of the config file>`),
      `config_path`, the extra flags and, under its name in lower case, the positional argument (or the list of them),
      as attributes.

    Raises:
      SystemExit: code 2 after one line on stderr for any mistake; code 0 after `--help`.
    """
    program = argv[0]
    argv = take_debug(argv)
    try:
        argv = [program, *flags.FlagValues().read_flags_from_files(argv[1:], force_gnu=True)]
        path, arguments = _split_config(argv)
        path = find_config(path)
        workdir = os.path.join("exp", path.stem)
        left = Path(_workdir_of(arguments) or workdir) / "config.json"
        if of_run and os.path.lexists(left):
            config = _config_of_run(left)
        else:
            config = load_config(path)
        config = config_lib.canonical(config)
        values = flags.FlagValues()
        flags.DEFINE_string("workdir", workdir, "the folder of the run", flag_values=values)
        if extra is not None:
            extra(values)
        if any(argument in ("--help", "-help", "-h", "--helpfull") for argument in arguments[1:]):
            print(_help(doc, program, path, config, values))
            raise SystemExit(0)
        config, found = _parse_flags(arguments, config, values, positional)
        _complete_distributed(config, arguments)
        config_lib.validate(config)
        options = Options.of(config)
        if options.deterministic:
            deterministic.prepare(os.environ)
    except UnicodeDecodeError as error:
        refuse(program, f"--flagfile: found a file that is no text ({error}), expected a flag on each line")
    except (ConfigError, flags.Error) as error:
        refuse(program, str(error))
    return options, SimpleNamespace(**found, config_path=str(path))


def _config_of_run(path: Path) -> ConfigDict:
    """The config that a run left.

    Raises:
      ConfigError: it cannot be read, or cannot work; the message begins with the path.
    """
    config = load_run_config(path)
    config.distributed = config_lib.base().distributed  # of the command that trained, not of this one
    try:
        config_lib.validate(config_lib.canonical(config))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return config


def _split_config(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The value of `--config` (the last one counts) and the other arguments."""
    path, rest, i = DEFAULT_CONFIG, [argv[0]], 1
    while i < len(argv):
        if argv[i] in ("--config", "-config"):
            if i + 1 == len(argv) or argv[i + 1].startswith("-"):
                raise ConfigError("--config: found no value, expected the path of a config file")
            path, i = argv[i + 1], i + 1
        elif re.match(r"--?config=", argv[i]):
            path = argv[i].split("=", 1)[1]
        else:
            rest.append(argv[i])
        i += 1
    return path, rest


def _workdir_of(arguments: Sequence[str]) -> str | None:
    """The value of `--workdir` (the last one counts), where a run's config is looked for before flags are parsed."""
    found = None
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        if argument in ("--workdir", "-workdir"):
            found = following
        elif re.match(r"--?workdir=", argument):
            found = argument.split("=", 1)[1]
    return found


def _parse_flags(
    argv: list[str], config: ConfigDict, values: flags.FlagValues, positional: str
) -> tuple[ConfigDict, dict]:
    """The config with the overrides of `argv`, and the options by name."""
    known = config_lib.flat(config)
    for argument in argv[1:]:
        override = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        if override and override[1] not in known:
            inside = [name for name in known if name.startswith(override[1] + ".")]
            problem = (f"found a value for a group of fields, expected one for config.{inside[0]} or so"
                       if inside else "found an unknown field" + config_lib.nearest(override[1], known))
            raise ConfigError(f"config.{override[1]}: {problem}")
    names = list(values)
    values.set_gnu_getopt(bool(positional))  # flags may follow it
    try:
        holder = config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        rest = values(argv)
    except flags.IllegalFlagValueError as error:
        raise _wrong_type(error, known) from error
    options = {name: values[name].value for name in names}
    if positional.endswith("..."):
        if len(rest) < 2:
            raise ConfigError(f"found no argument, expected {positional}, and flags")
        options[positional.removesuffix("...").lower()] = rest[1:]
        return holder.value, options
    if positional:
        if len(rest) != 2:
            raise ConfigError(f"found {' '.join(rest[1:]) or 'no argument'}, expected one {positional}, and flags")
        options[positional.lower()] = rest.pop()
    if len(rest) > 1:
        raise ConfigError(f"found the argument {rest[1]!r}, expected flags only, such as --config.seed=1")
    return holder.value, options


def _complete_distributed(config: ConfigDict, argv: Sequence[str]) -> None:
    """Fills in `config.distributed` from the environment, where neither the config nor `argv` gives it."""
    given = re.findall(r"^--?config\.distributed\.(\w+)", "\n".join(argv[1:]), re.MULTILINE)
    with contextlib.suppress(AttributeError, KeyError):  # a recipe without these fields is refused below
        config.distributed.update(distributed.complete(config.distributed, given, os.environ))


def _wrong_type(error: flags.IllegalFlagValueError, known: dict) -> ConfigError:
    """absl's complaint about an override, in the words of the schema."""
    override = re.match(r"flag --config\.([\w.]+)=(.*?): ", str(error), re.DOTALL)
    if not override:
        return ConfigError(str(error))
    name, value = override.groups()
    field = field_of(name)
    expected = field.expected if field else f"a value such as {known[name]!r}"
    return ConfigError(f"config.{name}: found {value!r}, expected {expected}")


def _help(doc: str, program: str, path: Path, config: ConfigDict, values: flags.FlagValues) -> str:
    lines = [doc.strip(), "", f"flags of {os.path.basename(program)}:",
             f"  --config: the recipe (default: {DEFAULT_CONFIG})"]
    lines += [f"  --{name}: {values[name].help} (default: {values[name].default})" for name in values]
    lines += ["  --debug: show the traceback of an error, too"]
    lines += ["", f"fields of {path}, each an override such as --config.seed=1:"]
    for name, value in config_lib.flat(config).items():
        field = field_of(name)
        lines.append(f"  --config.{name}={value!r}" + (f"  ({field.expected})" if field else ""))
    return "\n".join(lines)
