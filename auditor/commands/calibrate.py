"""`audit calibrate`: honest traces in, a profile out."""

from __future__ import annotations

import json
from pathlib import Path

import click

from auditor.commands import options
from auditor.commands.keys import passphrase


@click.command()
@click.argument("traces", nargs=-1, required=True, metavar="TRACES...")
@options.model_option
@options.adapter_option
@options.replay_options
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, metavar="FILE", help="Where the profile goes."
)
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@click.option(
    "--other-model",
    type=click.Path(path_type=Path),
    default=None,
    metavar="DIR",
    help="A cheaper model of the same vocabulary that a provider might serve instead. "
    "[default: the shipped draft for the demo model, else every second layer dropped]",
)
@click.option(
    "--shadow-tokens",
    type=click.IntRange(min=0),
    default=4000,
    show_default=True,
    help="Honest tokens on which each deviation is simulated, to know what a log could have caught.",
)
@click.option(
    "--valid-days",
    type=click.IntRange(min=1),
    default=180,
    show_default=True,
    help="When the profile expires; verdicts need one in force.",
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="A profile of the same recipe from an independent source; refuse if both cannot be honest.",
)
@click.option(
    "--keep-suspects",
    is_flag=True,
    help="Calibrate although some requests look unlike the others, or the two sources disagree.",
)
@click.option(
    "--key",
    "key_file",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="Sign the profile with this key (`audit keys generate`).",
)
@click.option(
    "--save", is_flag=True, help="Also keep the profile in the store, where `verify` looks by itself."
)
@options.input_format_option
@options.engine_recipe_option
@options.noise_option
@options.format_option
@options.threads_option
def calibrate(
    traces: tuple[str, ...],
    model_directory: Path | None,
    adapter: Path | None,
    device: str,
    replay_dtype: str,
    out: Path,
    force: bool,
    other_model: Path | None,
    shadow_tokens: int,
    valid_days: int,
    against: Path | None,
    keep_suspects: bool,
    key_file: Path | None,
    save: bool,
    input_format: str,
    engine_recipe: str | None,
    noise: str | None,
    output_format: str,
    threads: int | None,
) -> None:
    """Learn the honest numeric noise of one serving recipe from TRACES known to be honest.

    The more honest tokens, the subtler the cheating that can be convicted: a few thousand suffice for gross
    cheating (another model, int4 weights, a wrong seed), fifty thousand or more for int8.

    Noise that is let in here acquits later: requests that do not look like the others are refused, and so is
    a calibration that an independent one (--against) contradicts.

    \b
    Examples:
      audit calibrate honest.jsonl.gz --model models/llama --out honest.json
      audit calibrate ours.jsonl.gz --against theirs.json --out ours.json
    """
    from auditor.calibration import calibrate as run  # noqa: PLC0415
    from auditor.calibration_checks import check_sources  # noqa: PLC0415
    from auditor.key_files import read_key  # noqa: PLC0415
    from auditor.profile import read_profile  # noqa: PLC0415
    from auditor.profile_trust import sign_profile  # noqa: PLC0415
    from auditor.profiles import companion_model, write_profile  # noqa: PLC0415
    from auditor.reference.loading import load_model  # noqa: PLC0415
    from auditor.replay import Reference  # noqa: PLC0415

    options.set_threads(threads)
    signer = None if key_file is None else read_key(key_file, passphrase())
    directory = model_directory or options.demo_model()
    on = options.replay_on(device, replay_dtype)
    reference = Reference.load(directory, adapter=adapter, **on)
    other = other_model or companion_model(reference.model.digest)
    source = options.log_source(traces, input_format, engine_recipe, noise)
    with options.progress_bar("simulating dishonest providers", None) as advance:
        profile = run(
            source(),
            reference,
            other_model=load_model(other, **on) if other is not None else None,
            shadow_tokens=shadow_tokens,
            keep_suspects=keep_suspects,
            valid_days=valid_days,
            progress=lambda _stage, _done, _total: advance(1),
        )
    if against is not None and not keep_suspects:
        check_sources(profile, read_profile(against), where=str(against))
    if signer is not None:
        profile = sign_profile(profile, signer)
    write_profile(out, profile, overwrite=force)
    if save:
        from auditor.store import Store  # noqa: PLC0415

        with Store.open() as store:
            store.save_profile(profile)
    scale, low, high = profile.noise_scale
    summary = {
        "id": profile.id,
        "file": str(out),
        "provider_recipe": profile.key.provider_recipe,
        "expires": profile.expires,
        "honest_requests": len(profile.honest),
        "honest_tokens": profile.honest_tokens,
        "mismatches": sum(r.mismatches for r in profile.honest),
        "noise_scale": {"estimate": scale, "low": low, "high": high},
        "margin_quantiles": dict(profile.margin_quantiles),
        "smallest_alpha": dict(profile.smallest_alpha),
    }
    if output_format == "json":
        click.echo(json.dumps(summary))
        return
    click.echo(f"{out}: profile of {profile.key.provider_recipe}")
    click.echo(f"  {profile.honest_tokens:,} honest tokens in {len(profile.honest)} requests, ", nl=False)
    click.echo(f"{summary['mismatches']} mismatches")
    click.echo(f"  in force until {profile.expires}")
    click.echo(f"  noise scale {scale:.2g} logits, 95 % interval {low:.2g} to {high:.2g}")
    for factor, alpha in profile.smallest_alpha.items():
        click.echo(f"  can convict noise {factor} times as large at alpha down to {alpha:.2g}")
