"""The `audit` command: each subcommand is a few lines over the library function of the same name."""

from __future__ import annotations

import os
import sys
import traceback

import click

# Idle OpenMP threads that spin steal the cores of their neighbours; set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from auditor.commands.backup import backup, restore
from auditor.commands.bench import bench
from auditor.commands.calibrate import calibrate
from auditor.commands.check import check
from auditor.commands.commitments import challenge, commit, open_
from auditor.commands.demo import demo
from auditor.commands.dispute import dispute
from auditor.commands.doctor import doctor
from auditor.commands.generate import generate
from auditor.commands.keys import keys
from auditor.commands.log import log
from auditor.commands.matrix import matrix
from auditor.commands.plan import plan
from auditor.commands.probe import probe
from auditor.commands.profile import profile
from auditor.commands.provider import provider
from auditor.commands.record import record
from auditor.commands.report import report
from auditor.commands.schedule import schedule
from auditor.commands.seed import seed
from auditor.commands.serve import serve, worker
from auditor.commands.submit import erase, status, submit
from auditor.commands.tokens import tokens
from auditor.commands.verify import verify
from auditor.errors import AuditError, PolicyInvalidError

UNUSABLE = 2
INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="verifiable-inference-auditor", prog_name="audit")
def cli() -> None:
    """Did the LLM provider run what it sold?

    Replays logged generations on a trusted reference and gives a verdict at a stated false-alarm rate.

    Exit status: 0 consistent, 1 inconsistent, 3 inconclusive, 2 unusable input or options.
    Data goes to standard output, everything else to standard error.
    """


for command in (
    demo,
    verify,
    tokens,
    calibrate,
    plan,
    matrix,
    generate,
    seed,
    record,
    probe,
    provider,
    serve,
    worker,
    submit,
    status,
    erase,
    backup,
    restore,
    schedule,
    dispute,
    doctor,
    bench,
    keys,
    profile,
    log,
    report,
    commit,
    challenge,
    open_,
    check,
):
    cli.add_command(command)


def main() -> None:
    """Run the command line; every expected failure is one line on standard error and exit status 2."""
    try:
        sys.exit(cli(standalone_mode=False))
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(UNUSABLE)
    except PolicyInvalidError as error:
        for problem in error.problems:
            click.echo(f"audit: error[{error.code}]: {problem}", err=True)
        sys.exit(UNUSABLE)
    except AuditError as error:
        print_error(error)
        sys.exit(UNUSABLE)
    except (KeyboardInterrupt, click.Abort):
        click.echo("audit: interrupted", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of a pipe left; Python would complain again when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(UNUSABLE)
    except Exception:  # noqa: BLE001  # Python's own status for a bug of ours is 1: "inconsistent"
        traceback.print_exc()
        sys.exit(UNUSABLE)


def print_error(error: AuditError) -> None:
    """One line: what, where, how to mend it, and the stable code."""
    click.echo(f"audit: error[{error.code}]: {error}", err=True)
